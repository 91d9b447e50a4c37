"""Records that cannot be scored: what a budget may ask of the others, and what is said of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from pydantic import BaseModel

from delift_pipeline.core.errors import Refused
from delift_pipeline.records.schema import own_ids
from delift_pipeline.selection.budget import BudgetText, is_full, parse_budget
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import needs_of, replay_share
from delift_pipeline.selection.replay import replay_schedule

ADVICE = "raise the window, shorten the answers, or choose a selector that needs no scores (random)"


def refuse_unscorable(records: pl.DataFrame, unscorable: Mapping[str, str], what: str) -> None:
    """Refuse records of which none can be scored.

    Args:
        records: With record_id and source_ids.
        unscorable: record_id -> why it cannot be scored.
        what: What the records are called, such as `records of the pool`.

    Raises:
        Refused: none can be scored; the sentence says why the first cannot.
    """
    bad = [record for record in records["record_id"] if record in unscorable]
    if bad and len(bad) == records.height:
        reason = f"none of the {len(bad):,} {what} can be scored"
        said = f"{reason} (first: {_example(records, bad, unscorable)}); {ADVICE}"
        raise Refused(said, field="window")


def refuse_beyond_scorable(
    pool: pl.DataFrame,
    unscorable: Mapping[str, str],
    budget: BudgetText,
    share: float = 0.0,
    replayable: int = 0,
) -> None:
    """Refuse a budget above the number of records that can be ranked.

    `full`, tokens and `auto` take as many as there are.

    Args:
        pool: The records chosen from.
        unscorable: record_id -> why it cannot be scored.
        budget: The budget as written.
        share: Share of the picks that is replayed from existing records.
        replayable: Existing records that may be replayed.

    Raises:
        Refused: the sentence says how many can be scored, and why the first other one cannot.
    """
    allowed = parse_budget(budget, pool.height)
    bad = [record for record in pool["record_id"] if record in unscorable]
    if not bad or allowed.open_ended or is_full(budget):
        return
    scorable = pool.height - len(bad)
    possible = len(replay_schedule(allowed.count, share, scorable, replayable).replays)
    if possible < allowed.count:
        reason = (
            f"{allowed.count:,} records are asked for, and {scorable:,} of the {pool.height:,} can "
            f"be scored (first that cannot: {_example(pool, bad, unscorable)}); lower the budget "
            f"to {possible:,}, {ADVICE}"
        )
        raise Refused(reason, field="budget")


def replay_of(
    selector: str,
    stage: Stage,
    options: Mapping[str, Any] | BaseModel,
    existing: pl.DataFrame | None,
    unscorable: Mapping[str, str],
) -> tuple[float, int]:
    """The share of picks that a selector replays, and how many existing records may be."""
    if stage != "continual" or existing is None:
        return 0.0, 0
    scored = needs_of(selector, stage, options).replay_pairs
    allowed = [one for one in existing["record_id"] if not scored or one not in unscorable]
    return replay_share(selector, stage, options), len(allowed)


def unscorable_notes(
    records: pl.DataFrame, unscorable: Mapping[str, str], what: str
) -> tuple[str, ...]:
    """How many of these records cannot be scored and why the first cannot, if any."""
    bad = [record for record in records["record_id"] if record in unscorable]
    if not bad:
        return ()
    return (f"{len(bad):,} {what} cannot be scored (first: {_example(records, bad, unscorable)})",)


def _example(records: pl.DataFrame, bad: Sequence[str], unscorable: Mapping[str, str]) -> str:
    """The first of these records by the user's own id, and why it cannot be scored."""
    return f"{own_ids(records, bad[:1])[0]}: {unscorable[bad[0]]}"
