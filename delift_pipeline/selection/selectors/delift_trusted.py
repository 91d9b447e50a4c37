"""DELIFT trusted, the default: embeddings measure coverage, scores give trust.

    instruction tuning  f(A)     = sum_i c_i max_{j in A} c_j S_ij
    task-specific       f(A; T)  = sum_{t in T} max_{j in A} c_j max(U_tj, 0)
                                   + eta sum_{j in A} c_j max_t max(U_tj, 0)
    continual           f(A | E) = sum_i c_i max(0, max_{j in A} c_j S_ij
                                                    - nu max_{e in E} c_e S_ie)

c is the trust (`selection.trust`), and S the similarity of whole records or of prompts
(`selection.embedding`) with its diagonal. S and c are fixed and at least 0, so f is monotone and
submodular, and greedy reaches 1 - 1/e of the best f. In the continual stage a share of the picks is
replayed from the existing records E, chosen by f over E alone, and every prefix has this share.
Trust from agreement needs near pairs, about 40 per record. Trust from support needs two passes a
record. The task-specific stage also needs one row of pairs per target record. Source: this project;
docs/results.md has the experiments.
"""

from dataclasses import replace

import numpy as np

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.columns import Columns, as_columns, to_dense
from delift_pipeline.selection.embedding import MODEL, Similarities
from delift_pipeline.selection.objectives import FL2MI, FLCG, FacilityLocation
from delift_pipeline.selection.optimizers import lazy_greedy
from delift_pipeline.selection.options import Stage, TrustedOptions
from delift_pipeline.selection.ranking import Maximisation, maximise
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.trust import (
    Trust,
    trust_from_agreement,
    trust_from_both,
    trust_from_support,
)

PREFIX = "trusted_"


class DeliftTrustedSelector(Selector):
    """Maximises coverage weighted by trust, in the form of each stage."""

    name = "delift_trusted"
    options_model = TrustedOptions
    traits = Traits(
        reads_scores=True, reads_model=True, takes_embedder=True, replays=True, weighs_trust=True
    )

    def needs(self, stage: Stage, options: TrustedOptions) -> Needs:
        """Return support or near pairs, and by stage the target set's pairs or existing records."""
        return Needs(
            "none" if options.trust == "support" else "neighbours",
            support=options.trust != "agreement",
            target_pairs=stage == "task_specific",
            existing_records=stage == "continual",
            model=options.embedder == MODEL,
        )

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: TrustedOptions
    ) -> Selection:
        """Maximise the stage's objective greedily over the scorable records.

        Raises:
            DeliftError: A block lacks records, or no record of the pool could be scored.
            InputError: The embedder cannot be loaded.
        """
        trust, blocks = _trust(inputs, options)
        candidates = tuple(sorted(set(trust.ids) & set(inputs.pool["record_id"])))
        if not candidates:
            raise DeliftError(f"no record of the pool has scores, so {self.name} cannot rank any")
        if inputs.stage == "task_specific":
            target = inputs.block("target", "distance")
            blocks["target"] = target.hash
            block = target.restrict(target.rows, candidates)
            weights = trust.of(candidates).astype(np.float32)
            helps = FL2MI(np.maximum(to_dense(block.matrix), 0) * weights, options.eta)
            parts = [Maximisation(helps, block.rows, block.columns, shares=True)]
        else:
            parts = _coverage_parts(inputs, candidates, trust, options)
        selection = maximise(self.name, inputs, parts, lazy_greedy, budget, seed, options.replay)
        replayed = {"replayed": 0} if inputs.stage == "continual" else {}
        return replace(
            selection,
            objective=f"{PREFIX}{selection.objective}",
            blocks=blocks,
            details={**replayed, **selection.details},
            trust=trust,
        )


def _trust(inputs: SelectionInputs, options: TrustedOptions) -> tuple[Trust, dict[str, str]]:
    """Return the trust that the options ask for, and the hash of each block that it reads."""
    support = None
    if options.trust != "agreement":
        settings = (options.scale, options.embedder, inputs.model)
        support = trust_from_support(inputs.records, inputs.support, *settings)
        if options.trust == "support":
            return support, {}
    near = inputs.block("neighbours", "distance")
    settings = (options.embedder, options.floor, inputs.model)
    trust = trust_from_agreement(near, inputs.neighbourhood, *settings)
    return trust if support is None else trust_from_both(trust, support), {"neighbours": near.hash}


def _coverage_parts(
    inputs: SelectionInputs, candidates: tuple[str, ...], trust: Trust, options: TrustedOptions
) -> list[Maximisation]:
    """Return coverage of the pool, or for continual coverage beyond E, and of E for replay."""
    similar = inputs.similarities(inputs.records, options)
    own, weights = _kernel(similar, trust, candidates, candidates), trust.of(candidates)
    existing = tuple(sorted(inputs.existing))
    if inputs.stage != "continual" or not existing:
        return [Maximisation(FacilityLocation(own, weights), candidates, candidates, shares=True)]
    new = FLCG(own, _kernel(similar, trust, candidates, existing), options.nu, weights)
    replay = FacilityLocation(_kernel(similar, trust, existing, existing), trust.of(existing))
    both = (new, candidates), (replay, existing)
    return [Maximisation(objective, ids, ids, shares=True) for objective, ids in both]


def _kernel(
    similar: Similarities, trust: Trust, rows: tuple[str, ...], columns: tuple[str, ...]
) -> Columns:
    """Return c_j S_ij, dense in column order or CSC."""
    part, factors = similar.submatrix(rows, columns), trust.of(columns).astype(np.float32)
    if isinstance(part, np.ndarray):
        return as_columns(part * factors)
    from scipy.sparse import diags

    return as_columns((part @ diags(factors)).astype(np.float32))
