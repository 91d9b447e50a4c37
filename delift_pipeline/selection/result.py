"""The result of a selection: a ranking, the reasons for it, and its diagnostics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.selection.objectives import Coverage
from delift_pipeline.selection.trust import Trust

SUBSET_SCHEMA: dict[str, Any] = {
    "record_id": pl.String,
    "source_id": pl.String,
    "rank": pl.UInt32,
    "gain": pl.Float64,
    "covers": pl.List(pl.String),
    "trust": pl.Float64,
    "self_share": pl.Float64,
    "near_duplicates": pl.UInt32,
    "replayed": pl.Boolean,
}
DROPPED_SCHEMA: dict[str, Any] = {
    "record_id": pl.String,
    "source_id": pl.String,
    "covered_by": pl.String,
    "coverage": pl.Float64,
    "trust": pl.Float64,
    "near_duplicates": pl.UInt32,
}
TRUST_MARGIN = 0.01
"""Picks get a warning if their mean trust is below the pool's by more than this."""


@dataclass(frozen=True)
class Diagnostics:
    """Numbers that compare a selection with its pool; None if they cannot be computed.

    Attributes:
        trust_picks: Mean trust of the picks that were scored.
        trust_pool: Mean trust of the pool's records that were scored.
        suspected_picks: Share of the picks with trust below 1/2.
        suspected_pool: Share of the pool with trust below 1/2.
        coverage: Mean over the pool of the best cosine (tf-idf, prompt and answer) to a pick.
        coverage_random: The mean of this number over random subsets of the same size.
    """

    trust_picks: float | None = None
    trust_pool: float | None = None
    suspected_picks: float | None = None
    suspected_pool: float | None = None
    coverage: float | None = None
    coverage_random: float | None = None

    @property
    def trust_difference(self) -> float | None:
        """Return the trust of the picks minus the trust of the pool."""
        if self.trust_picks is None or self.trust_pool is None:
            return None
        return self.trust_picks - self.trust_pool

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a warning if the picks have less trust than the pool by over `TRUST_MARGIN`."""
        gap = self.trust_difference
        if gap is None or gap >= -TRUST_MARGIN:
            return ()
        return (
            f"warning: the picks have less trust than the pool ({self.trust_picks:.3f} and "
            f"{self.trust_pool:.3f}). In experiments, such subsets trained worse than random ones",
        )

    def lines(self) -> tuple[str, ...]:
        """Return the diagnostics as sentences, warnings last."""
        lines = []
        if self.trust_picks is not None:
            lines.append(
                f"mean trust: chosen {self.trust_picks:.3f}, pool {self.trust_pool:.3f}; "
                f"suspected records: chosen {self.suspected_picks:.1%}, "
                f"pool {self.suspected_pool:.1%}"
            )
        if self.coverage is not None:
            lines.append(
                f"coverage: chosen {self.coverage:.3f}, "
                f"random subsets of this size {self.coverage_random:.3f}"
            )
        return (*lines, *self.warnings)

    @classmethod
    def from_json(cls, values: Mapping[str, float | None]) -> "Diagnostics":
        """Read what `as_json` returned; a missing number is None."""
        return cls(**{field.name: values.get(field.name) for field in fields(cls)})

    def as_json(self) -> dict[str, float | None]:
        """Return all numbers by name."""
        return {**asdict(self), "trust_difference": self.trust_difference}


@dataclass(frozen=True)
class Reasons:
    """Which selected record covers which target.

    Attributes:
        covers: For each selected record, the targets that it covers best.
        covered_by: Target -> the selected record that covers it best, the better-ranked of equals.
        coverage: Target -> the kernel's value of that pair, above 0.
    """

    covers: tuple[tuple[str, ...], ...] = ()
    covered_by: dict[str, str] = field(default_factory=dict, repr=False)
    coverage: dict[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Selection:
    """The result of a selector.

    Attributes:
        selector: The selector's name.
        ranking: record_ids, best first. A prefix is the ranking for a smaller budget.
        gains: float64 [selected], the gain of each pick; None if the selector has no objective.
        reasons: Which selected record covers which target.
        objective: Name of the objective, or None.
        value: The objective's value of the whole subset, or None.
        value_random: Mean value of random subsets of the same size, or None.
        blocks: Kernel blocks that were read -> their hashes.
        details: Further values for the manifest, such as the scaling map.
        notes: Sentences for the user, such as which records could not be ranked.
        trust: Trust of the scored records, if near pairs were read.
        self_shares: For each selected record the share of its gain that is its own row; None if it
            has no row. Empty if no objective was maximised.
        replayed: Selected records that are not in the pool (continual only).
        duplicates: record_id -> number of its group of near duplicates.
        diagnostics: Numbers that compare the selection with its pool and with random ones.
    """

    selector: str
    ranking: tuple[str, ...]
    gains: np.ndarray | None = field(default=None, repr=False)
    reasons: Reasons = field(default_factory=Reasons, repr=False)
    objective: str | None = None
    value: float | None = None
    value_random: float | None = None
    blocks: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trust: Trust | None = field(default=None, repr=False)
    self_shares: tuple[float | None, ...] = field(default=(), repr=False)
    replayed: pl.DataFrame | None = field(default=None, repr=False)
    duplicates: dict[str, int] = field(default_factory=dict, repr=False)
    diagnostics: Diagnostics | None = None


def self_shares(
    objective: Coverage, picks: Sequence[int], own_rows: Sequence[int], gains: np.ndarray
) -> tuple[float | None, ...]:
    """Return which share of each pick's gain is its own row. Near 1, it represents only itself.

    `picks` are column numbers in rank order, and `own_rows` are the rows of the same records, or
    -1. A share is None if the record has no row or the pick no gain.
    """
    best, weights = objective.floor.copy(), objective.weights
    shares: list[float | None] = []
    for pick, own, gain in zip(picks, own_rows, gains, strict=True):
        rows, values = objective.kernel.column(pick)
        where = slice(None) if rows is None else rows
        before = best[own] if own >= 0 else 0.0
        best[where] = np.maximum(best[where], values)
        lift = (best[own] - before) * (1.0 if weights is None else weights[own])
        shares.append(min(1.0, float(lift / gain)) if own >= 0 and gain > 0 else None)
    return tuple(shares)


def subset_frames(selection: Selection, pool: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the selected and the dropped records of a pool as tables.

    Returns:
        The subset in rank order (`SUBSET_SCHEMA`) and the dropped records in file order
        (`DROPPED_SCHEMA`). `gain` is null without an objective and for replayed records,
        `covered_by` and `coverage` if no selected record covers the record, `trust` if its near
        pairs were not scored, and `near_duplicates` (the number of a group) if it has none.
    """
    replayed = {} if selection.replayed is None else _source_ids(selection.replayed)
    trust = {} if selection.trust is None else selection.trust.by_id
    ranking, reasons, sources = selection.ranking, selection.reasons, _source_ids(pool)
    gains = [None] * len(ranking) if selection.gains is None else selection.gains.tolist()
    source_of, selected = replayed | sources, set(ranking)

    def columns(records: Sequence[str]) -> dict[str, Any]:
        return {
            "record_id": records,
            "source_id": [source_of[record] for record in records],
            "trust": [trust.get(record) for record in records],
            "near_duplicates": [selection.duplicates.get(record) for record in records],
        }

    subset = columns(ranking) | {
        "rank": range(len(ranking)),
        "gain": pl.Series(gains, dtype=pl.Float64).fill_nan(None),
        "covers": [list(targets) for targets in reasons.covers or [()] * len(ranking)],
        "self_share": selection.self_shares or [None] * len(ranking),
        "replayed": [record in replayed for record in ranking],
    }
    others = [record for record in sources if record not in selected]
    dropped = columns(others) | {
        "covered_by": [reasons.covered_by.get(record) for record in others],
        "coverage": [reasons.coverage.get(record) for record in others],
    }
    return pl.DataFrame(subset, SUBSET_SCHEMA), pl.DataFrame(dropped, DROPPED_SCHEMA)


def _source_ids(frame: pl.DataFrame) -> dict[str, str | None]:
    """Return record_id -> the source id of its first copy."""
    return dict(zip(frame["record_id"], frame["source_ids"].list.first(), strict=True))
