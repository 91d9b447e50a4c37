"""A ranking by one number a record, and the targets that such a number may be computed for.

    f(A) = sum_{j in A} score_j

is modular, so that the ranking by score is the greedy one and a score is its marginal gain. Equal
scores are ranked by record_id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.optimizers import in_order
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import SelectionInputs

DECIMALS = 6
"""Scores are compared after rounding: further decimals depend on the order of sums."""


def by_score(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    scores: np.ndarray,
    budget: int,
    *,
    ties: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Selection:
    """Rank records by score.

    Args:
        selector: Its name.
        inputs: What is chosen from.
        ids: record_ids of the records that have a score.
        scores: float [ids], finite.
        budget: Records asked for; fewer are ranked where fewer have a score.
        ties: float [ids], what decides among equal scores before the record_id does.
        notes: Sentences for the user, beside those on records without a score.

    Raises:
        DeliftError: no record has a score, or a score is not finite.
        Refused: a rule or quota cannot be kept.
    """
    if not len(ids):
        raise DeliftError(f"no record of the pool has scores, so {selector} cannot rank any")
    rounded = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    if not np.isfinite(rounded).all():
        raise DeliftError(f"{selector} gives scores that are not finite; try dtype float32")
    second = np.zeros(len(ids)) if ties is None else np.round(ties, DECIMALS)
    keys = zip(-rounded, -second, ids, range(len(ids)), strict=True)
    order = np.array([number for *_, number in sorted(keys)], dtype=np.int64)
    count = min(budget, len(ids))
    constraints = inputs.constraints(ids, count)
    picks = _worth(in_order(order, count, constraints), rounded, constraints)
    short = f"the ranking has {len(ids):,} records, fewer than the {budget:,} of the budget"
    return Selection(
        selector=selector,
        ranking=tuple(ids[int(j)] for j in picks),
        gains=rounded[picks],
        objective=f"sum of {selector} scores",
        value=float(rounded[picks].sum()),
        value_random=float(rounded.mean() * len(picks)),
        notes=(
            *notes,
            *inputs.unranked_notes(selector, len(ids)),
            *([short] if budget > len(ids) else ()),
        ),
    )


def by_order(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    order: np.ndarray,
    budget: int,
    **said: Any,
) -> Selection:
    """Records in a given order, without gains, as far as budget and rules allow.

    Args:
        selector: Its name.
        inputs: What is chosen from.
        ids: record_ids of the candidates.
        order: int [ids], every candidate once.
        budget: Records asked for.
        said: Further fields of the selection.
    """
    picks = in_order(order, budget, inputs.constraints(ids, budget))
    return Selection(selector, tuple(ids[int(j)] for j in picks), **said)


def refuse_auto(selector: str, inputs: SelectionInputs) -> None:
    """Refuse the budget `auto`, which stops by gains, for a ranking that has none."""
    if inputs.allowance is not None and inputs.allowance.stop:
        said = f"{selector} has no gains to stop at; give a share or a count"
        raise Refused(said, field="budget")


def _worth(picks: np.ndarray, scores: np.ndarray, constraints: Constraints | None) -> np.ndarray:
    """The picks down to where a budget of `auto` stops; pinned ones stay."""
    if constraints is None or not constraints.stop or not len(picks):
        return picks
    pinned = np.isin(picks, constraints.pinned)
    enough = scores[picks] >= constraints.stop * scores[picks[0]]
    return picks[pinned | np.logical_and.accumulate(enough | pinned)]


TARGET_SHARE = 0.05
TARGETS, WARM_UP = 1, 2
"""What is drawn with one seed."""


@dataclass(frozen=True)
class TargetSet:
    """The targets, sorted by record_id, and whether they were drawn from the pool."""

    records: pl.DataFrame = field(repr=False)
    drawn: bool

    @property
    def ids(self) -> tuple[str, ...]:
        """Their record_ids."""
        return tuple(self.records["record_id"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of them."""
        if not self.drawn:
            return ()
        count = self.records.height
        return (f"the stage has no target set; {count:,} records of the pool stand for it",)


def target_set(inputs: SelectionInputs, seed: int, share: float = TARGET_SHARE) -> TargetSet:
    """D_T in the task-specific stage, elsewhere a seeded share of the pool.

    Held-out records are never among them: a selection does not even see them. A drawn target stays
    a candidate, and selectors leave out what it says of itself.

    Args:
        inputs: What is chosen from.
        seed: Decides the draw.
        share: Share of the pool drawn, rounded half up, at least one record.

    Raises:
        DeliftError: the stage has a target set and its records were not given.
    """
    if inputs.stage == "task_specific":
        if inputs.target is None:
            raise DeliftError("the target set's records were not given")
        return TargetSet(inputs.target.sort("record_id"), drawn=False)
    return TargetSet(drawn(inputs.pool, share, [seed, TARGETS]), drawn=True)


def drawn(pool: pl.DataFrame, share: float, seeds: Sequence[int]) -> pl.DataFrame:
    """A seeded share of the pool, sorted by record_id; the order of the file does not matter.

    Args:
        pool: What is drawn from.
        share: Rounded half up, at least one record; 1 for all.
        seeds: The arm's seed and a number of what is drawn, so that two draws differ.
    """
    ordered = pool.sort("record_id")
    count = resolve_budget(share if share < 1 else "full", ordered.height)
    chosen = np.random.default_rng(seeds).permutation(ordered.height)[:count]
    return ordered[np.sort(chosen)]


def tasks_of(records: pl.DataFrame) -> dict[str, np.ndarray]:
    """Task -> places of its records, int64; tasks sorted, those without one under an empty name."""
    if "task" not in records.columns:
        return {"": np.arange(records.height)}
    names = np.array([task or "" for task in records["task"]])
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
