"""The recommended selector: embeddings give coverage, utilities of near pairs give trust.

    instruction tuning  f(A)     = sum_i c_i max_{j in A} c_j S_ij
    task-specific       f(A; T)  = sum_{t in T} max_{j in A} c_j max(U_tj, 0)
                                   + eta sum_{j in A} c_j max_t max(U_tj, 0)
    continual           f(A | E) = sum_i c_i max(0, max_{j in A} c_j S_ij
                                                    - nu max_{e in E} c_e S_ie)

c is the trust (`selection.trust`), S the similarity of whole records (`selection.embedding`), its
diagonal kept. S and c are fixed and at least 0, so that f is monotone and submodular: greedy
reaches 1 - 1/e of the best f. In the continual stage a share of the picks is replayed from the
existing records E, chosen by f over E alone; every prefix of the ranking holds that share. Only
near pairs are scored, about 40 a record, and one row a target record. Source and evidence: this
project's own comparison on a synthetic world, docs/log.md.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.embedding import MODEL, Similarities, similarities
from delift_pipeline.selection.objectives import (
    FL2MI,
    FLCG,
    FacilityLocation,
    Objective,
    objective_of_random,
)
from delift_pipeline.selection.optimizers import lazy_greedy, order_of
from delift_pipeline.selection.options import Stage, TrustedOptions
from delift_pipeline.selection.replay import Picks, joined, replay_schedule, shortfalls
from delift_pipeline.selection.result import Selection, reasons_of, self_shares
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.trust import Trust, trust_of
from delift_pipeline.utility.block import Block
from delift_pipeline.utility.columns import as_columns, row_maxima, to_dense

PREFIX = "trusted_"


@dataclass(frozen=True)
class Part:
    """One maximisation: an objective and what its rows and columns are.

    Attributes:
        objective: The objective.
        kernel: float32 [rows, columns], trust-weighted.
        rows: record_ids of the targets.
        columns: record_ids of the candidates, sorted.
        weights: float64 [rows], or None for 1.
        floor: float64 [rows], what is covered beforehand, or None for nothing.
    """

    objective: Objective
    kernel: Any = field(repr=False)
    rows: tuple[str, ...] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    weights: np.ndarray | None = field(default=None, repr=False)
    floor: np.ndarray | None = field(default=None, repr=False)

    def ranked(self, count: int, constraints: Constraints | None = None) -> Picks:
        """The first `count` picks with their reasons."""
        ranking = lazy_greedy(self.objective, count, order_of(self.columns), constraints)
        picks = [int(j) for j in ranking.picks]
        kernel = as_columns(self.kernel)
        own = {record: row for row, record in enumerate(self.rows)}
        rows = [own.get(self.columns[j], -1) for j in picks]
        shares = self_shares(
            kernel, picks, rows, ranking.gains, weights=self.weights, floor=self.floor
        )
        ids = tuple(self.columns[j] for j in picks)
        reasons = reasons_of(kernel, picks, self.rows, self.columns)
        return Picks(ids, ranking.gains, reasons, shares)


class DeliftTrustedSelector(Selector):
    """Trusted coverage, its task-specific and its continual form."""

    name = "delift_trusted"
    options_model = TrustedOptions
    traits = Traits(
        reads_scores=True, reads_model=True, takes_embedder=True, replays=True, weighs_trust=True
    )

    def needs(self, stage: Stage, options: TrustedOptions) -> Needs:
        """Near pairs, and the target set's rows or the existing records where there are any."""
        return Needs(
            "neighbours",
            target_pairs=stage == "task_specific",
            existing_records=stage == "continual",
            model=options.embedder == MODEL,
        )

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: TrustedOptions
    ) -> Selection:
        """Maximise the stage's objective greedily over the scorable records.

        Raises:
            DeliftError: a block lacks records, or nothing in the pool could be scored.
            Refused: the embedder cannot be loaded.
        """
        near = inputs.block("neighbours", "distance")
        trust = trust_of(near, inputs.neighbourhood, options.embedder, options.floor, inputs.model)
        blocks = {"neighbours": near.hash}
        candidates = tuple(sorted(set(trust.ids) & set(inputs.pool["record_id"])))
        if not candidates:
            raise DeliftError(f"no record of the pool has scores, so {self.name} cannot rank any")
        if inputs.stage == "task_specific":
            target = inputs.block("target", "distance")
            blocks["target"] = target.hash
            parts = [_task_part(target, candidates, trust, options)]
        else:
            parts = _coverage_parts(inputs, candidates, trust, options)
        return self._selection(inputs, parts, trust, blocks, (budget, seed), options)

    def _selection(
        self,
        inputs: SelectionInputs,
        parts: list[Part],
        trust: Trust,
        blocks: dict[str, str],
        asked: tuple[int, int],
        options: TrustedOptions,
    ) -> Selection:
        budget, seed = asked
        replayable = len(parts[1].columns) if len(parts) > 1 else 0
        schedule = replay_schedule(budget, options.replay, len(parts[0].columns), replayable)
        chosen = parts[0].ranked(schedule.new, inputs.constraints(parts[0].columns, schedule.new))
        replayed = parts[1].ranked(schedule.replayed) if schedule.replayed else None
        picks = joined(chosen, replayed, schedule)
        objective = parts[0].objective
        return Selection(
            selector=self.name,
            ranking=picks.ids,
            gains=picks.gains,
            reasons=picks.reasons,
            objective=PREFIX + objective.name,
            value=float(chosen.gains.sum()),
            value_random=objective_of_random(objective, len(chosen.ids), seed),
            blocks=blocks,
            details={"replayed": schedule.replayed} if inputs.stage == "continual" else {},
            notes=(
                *inputs.unranked_notes(self.name, len(parts[0].columns)),
                *shortfalls(schedule, budget),
            ),
            trust=trust,
            self_shares=picks.self_shares,
            replayed=inputs.replayed(replayed),
        )


def _task_part(
    target: Block, candidates: tuple[str, ...], trust: Trust, options: TrustedOptions
) -> Part:
    block = target.restricted(target.rows, candidates)
    kernel = np.maximum(to_dense(block.matrix), 0) * trust.of(candidates).astype(np.float32)
    return Part(FL2MI(kernel, options.eta), kernel, block.rows, block.columns)


def _coverage_parts(
    inputs: SelectionInputs, candidates: tuple[str, ...], trust: Trust, options: TrustedOptions
) -> list[Part]:
    """Coverage of the pool; in the continual stage what E leaves, and coverage of E for replay."""
    similar = similarities(
        inputs.records,
        options.embedder,
        dense_limit=options.dense_limit,
        neighbours=options.coverage_neighbours,
        model=inputs.model,
    )
    own, weights = _kernel(similar, trust, candidates, candidates), trust.of(candidates)
    existing = tuple(sorted(inputs.existing))
    if inputs.stage != "continual" or not existing:
        return [Part(FacilityLocation(own, weights), own, candidates, candidates, weights)]
    held = _kernel(similar, trust, candidates, existing)
    objective = FLCG(own, held, options.nu, weights)
    covered = options.nu * row_maxima(as_columns(held))
    old, old_weights = _kernel(similar, trust, existing, existing), trust.of(existing)
    return [
        Part(objective, own, candidates, candidates, weights, covered),
        Part(FacilityLocation(old, old_weights), old, existing, existing, old_weights),
    ]


def _kernel(
    similar: Similarities, trust: Trust, rows: tuple[str, ...], columns: tuple[str, ...]
) -> Any:
    """c_j S_ij, dense in column order or CSC."""
    part, factors = similar.part(rows, columns), trust.of(columns).astype(np.float32)
    if isinstance(part, np.ndarray):
        return np.asfortranarray(part * factors)
    from scipy.sparse import diags

    return (part @ diags(factors)).astype(np.float32).tocsc()
