"""The records that a target-based selector chooses for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.selector import SelectionInputs

TARGET_SHARE = 0.05
TARGETS, WARM_UP = 1, 2
"""What is drawn with one seed."""


@dataclass(frozen=True)
class TargetSet:
    """The targets, sorted by record_id.

    Attributes:
        records: The targets.
        drawn: Whether they were drawn from the pool for want of a target set.
    """

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
