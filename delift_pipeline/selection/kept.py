"""Whether a subset keeps to its budget and rules, counted from the subset itself.

It reads nothing that the optimizer counted, so that it holds whatever ranked the records.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.selection.budget import Budget, token_costs
from delift_pipeline.selection.rules import Rules

ROUNDING = 1e-9


@dataclass(frozen=True)
class Ranked:
    """A ranking as it is checked.

    Attributes:
        records: record_ids in rank order.
        gains: Their gains, None where there are none.
        pool: The records it was chosen from.
    """

    records: Sequence[str]
    gains: Sequence[float | None]
    pool: pl.DataFrame = field(repr=False)


def broken(ranked: Ranked, budget: Budget, rules: Rules) -> tuple[str, ...]:
    """One sentence for each part of the budget or of the rules that a subset breaks."""
    chosen = ranked.pool.filter(pl.col("record_id").is_in(list(ranked.records)))
    return (
        *_budget_broken(ranked, chosen, budget, set(rules.pin)),
        *_pins_broken(ranked, rules),
        *_quotas_broken(ranked.pool, chosen, rules),
    )


def spent(pool: pl.DataFrame, records: Sequence[str]) -> int:
    """What records of a pool cost in tokens."""
    return int(token_costs(pool.filter(pl.col("record_id").is_in(list(records)))).sum())


def _budget_broken(
    ranked: Ranked, chosen: pl.DataFrame, budget: Budget, pinned: set[str]
) -> list[str]:
    lines = []
    if len(ranked.records) > budget.count:
        lines.append(f"{len(ranked.records):,} records are above the budget of {budget.count:,}")
    if budget.tokens is not None and (cost := float(token_costs(chosen).sum())) > budget.tokens:
        lines.append(f"{cost:,.0f} tokens are above the budget of {budget.tokens:,}")
    pairs = zip(ranked.records, ranked.gains, strict=True)
    free = [gain for record, gain in pairs if record not in pinned and gain is not None]
    if budget.stop and free and min(free) < budget.stop * free[0] * (1 - ROUNDING):
        lines.append(f"a gain of {min(free):.3g} is under {budget.stop:g} of the first, {free[0]}")
    return lines


def _pins_broken(ranked: Ranked, rules: Rules) -> list[str]:
    records, known = set(ranked.records), set(ranked.pool["record_id"])
    absent, present = set(rules.pin) & known - records, set(rules.ban) & records
    lines = [f"{len(absent):,} records pinned in are not in the subset"] if absent else []
    return lines + ([f"{len(present):,} excluded records are in the subset"] if present else [])


def _quotas_broken(pool: pl.DataFrame, chosen: pl.DataFrame, rules: Rules) -> list[str]:
    lines = []
    for quota in rules.quotas:
        there, picked = (_groups(frame, quota.column) for frame in (pool, chosen))
        low, high = quota.counts(chosen.height)
        for group in sorted(there) if quota.value is None else [quota.value]:
            size = picked[group]
            if size < low or (high is not None and size > high):
                lines.append(f"{size:,} records of {quota.column} {group!r}, asked {quota}")
    return lines


def _groups(frame: pl.DataFrame, column: str) -> Counter[str]:
    return Counter(frame[column].cast(pl.String).fill_null("").to_list())
