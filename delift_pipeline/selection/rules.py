"""Pins, exclusions, quotas and caps as users write them in `arms.yaml` and on the command line.

`find_violations` counts from the finished subset whether it obeys its budget and rules. It does not
trust the counts of the optimizer, so it is valid for every selector.

A quota is `COLUMN:LOW..HIGH` for each value of a column, or `COLUMN=VALUE:LOW..HIGH` for one value.
Either end may be left out. An end below 1 with a decimal point is a share of the budget, and a
whole number is a count: `task:0.1..0.4`, `source:..500`, `task=math:0.2..`.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.records.schema import display_ids
from delift_pipeline.records.stored import match_records
from delift_pipeline.selection.budget import Budget, token_costs
from delift_pipeline.selection.constraints import Constraints, Grouping

_QUOTA = re.compile(r"([^:=]+)(?:=([^:]*))?:([0-9.]*?)\.\.([0-9.]*)")
_FORM = "Write a quota as column:low..high or column=value:low..high, such as task:0.1..0.4"
_CAP = re.compile(r"([^:]+):([0-9.]+)")
_CAP_FORM = "Write a cap as column:most or column=value:most, such as source:500"
MOST_IDS = 5
ROUNDING = 1e-9


@dataclass(frozen=True)
class Quota:
    """The least and the greatest number of records of a group.

    Attributes:
        column: The pool's column.
        value: The value that the quota is for, or None for each value.
        low: The least number; a float is a share of the budget, an int a count.
        high: The greatest number, or None.
    """

    column: str
    value: str | None = None
    low: float | int = 0
    high: float | int | None = None

    @classmethod
    def parse(cls, text: str) -> "Quota":
        """Read a quota from its text.

        Raises:
            InputError: The text does not have the form of a quota.
        """
        match = _QUOTA.fullmatch(text.strip())
        if match is None or not (match[3] or match[4]):
            raise InputError(f"{text!r} is not a quota. {_FORM}", field="quota")
        low = _parse_end(match[3], text) if match[3] else 0
        high = _parse_end(match[4], text) if match[4] else None
        return cls(match[1].strip(), match[2], low, high)

    def __str__(self) -> str:
        where = self.column if self.value is None else f"{self.column}={self.value}"
        return f"{where}:{self.low}..{'' if self.high is None else self.high}"

    def counts(self, budget: int) -> tuple[int, int | None]:
        """Return both ends as counts for a budget: `low` is rounded up, `high` down."""
        low, high = self.low, self.high
        # 1e-9 allows for the rounding of shares such as 0.1 in binary.
        low = low if isinstance(low, int) else math.ceil(low * budget - 1e-9)
        return low, math.floor(high * budget + 1e-9) if isinstance(high, float) else high


def _parse_end(text: str, quota: str) -> float | int:
    try:
        number = int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise InputError(f"{quota!r} is not a quota. {_FORM}", field="quota") from error
    if isinstance(number, float) and number > 1:
        raise InputError(f"{quota!r} has a share above 1. {_FORM}", field="quota")
    return number


@dataclass(frozen=True)
class Rules:
    """The rules of a subset: record_ids that must or must not be in it, and quotas.

    A cap on every source is `Quota("source", high=...)`.
    """

    pin: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    quotas: tuple[Quota, ...] = ()

    def resolve(self, pool: pl.DataFrame, ids: Sequence[str], budget: Budget) -> Constraints:
        """Return the rules in candidate numbers. `ids` are the candidates in the objective's order.

        Raises:
            InputError: A record or column does not exist, or a quota has a share or a least count
                and the budget is in tokens or `auto`.
        """
        number, known = {record: j for j, record in enumerate(ids)}, set(pool["record_id"])
        frame = pl.DataFrame({"record_id": list(ids)}, schema={"record_id": pl.String})
        frame = frame.join(pool, on="record_id", how="left", maintain_order="left")
        columns = dict.fromkeys(quota.column for quota in self.quotas)
        self._refuse_unrankable(pool, frame, budget)
        excluded = [record for record in self.exclude if record in number or record not in known]
        return Constraints(
            pinned=_candidate_numbers(self.pin, number, pool, "pin"),
            excluded=_candidate_numbers(excluded, number, pool, "exclude"),
            groupings=tuple(self._build_grouping(frame, column, budget) for column in columns),
            costs=None if budget.tokens is None else token_costs(frame),
            capacity=budget.tokens,
            stop=budget.stop,
        )

    def _refuse_unrankable(self, pool: pl.DataFrame, frame: pl.DataFrame, budget: Budget) -> None:
        """Refuse a least count for a group if none of its records can be ranked."""
        for quota in self.quotas:
            least, _ = quota.counts(budget.count)
            if not least or quota.column not in frame.columns:
                continue
            in_pool, rankable = (set(_group_names(one[quota.column])) for one in (pool, frame))
            groups = in_pool if quota.value is None else in_pool & {quota.value}
            if lost := sorted(groups - rankable):
                reason = f"{quota} needs at least {least:,} of {quota.column} {lost[0]!r}"
                why = "but its records have no scores and cannot be ranked"
                form = f"Set quotas for the other values instead ({quota.column}=VALUE:LOW..)"
                raise InputError(f"{reason}, {why}. {form}", field="quota")

    def _build_grouping(self, frame: pl.DataFrame, column: str, budget: Budget) -> Grouping:
        """Combine all quotas and caps on one column."""
        if column not in frame.columns:
            names = ", ".join(sorted(frame.columns))
            raise InputError(f"the pool has no column {column}. It has: {names}", field="quota")
        values = _group_names(frame[column])
        number = {name: place for place, name in enumerate(sorted(set(values)))}
        names = tuple(number)
        low, high = np.zeros(len(names), np.int64), np.full(len(names), frame.height)
        for quota in (quota for quota in self.quotas if quota.column == column):
            shares = isinstance(quota.low, float) or isinstance(quota.high, float)
            if budget.is_open_ended and (shares or quota.low):
                reason = "a quota with a share or a least count needs a budget in records"
                raise InputError(f"{reason}. Do not use tokens or auto with it", field="quota")
            least, most = quota.counts(budget.count)
            for name in names if quota.value is None else [quota.value]:
                if name not in number:
                    reason = f"no record has {column} {name!r}. Remove the quota"
                    raise InputError(reason, field="quota")
                # A column can have several quotas and caps; the strictest end of each counts.
                low[number[name]] = max(low[number[name]], least)
                high[number[name]] = min(high[number[name]], frame.height if most is None else most)
        return Grouping(column, names, np.array([number[v] for v in values]), low, high)


def _group_names(column: pl.Series) -> pl.Series:
    return column.cast(pl.String).fill_null("")


def _candidate_numbers(
    records: Sequence[str], number: dict[str, int], pool: pl.DataFrame, field: str
) -> tuple[int, ...]:
    """Return the candidate numbers of records, each once; a fault has the field `field`."""
    absent = [record for record in records if record not in number]
    if absent:
        known = absent[0] in set(pool["record_id"])
        why = "have no scores and cannot be ranked" if known else "are not in the pool"
        first = display_ids(pool, absent[:1])[0]
        raise InputError(f"{len(absent):,} records {why} (first: {first})", field=field)
    return tuple(dict.fromkeys(number[record] for record in records))


class RuleOptions(BaseModel):
    """The rules of a subset as a user writes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pin: tuple[str, ...] = Field(default=(), description="Ids of records that must be in.")
    exclude: tuple[str, ...] = Field(default=(), description="Ids of records that must not be in.")
    quota: tuple[str, ...] = Field(
        default=(), description="COLUMN:LOW..HIGH or COLUMN=VALUE:LOW..HIGH, e.g. task:0.1..0.4."
    )
    cap: tuple[str, ...] = Field(
        default=(), description="COLUMN:MOST, the most records of each value, e.g. source:500."
    )

    @field_validator("quota", "cap")
    @classmethod
    def _check_form(cls, written: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        try:
            for text in written:
                (parse_cap if info.field_name == "cap" else Quota.parse)(text)
        except InputError as refused:
            raise ValueError(refused.faults[0].reason) from refused
        return written

    @property
    def has_rules(self) -> bool:
        """Whether there is any rule."""
        return self != RuleOptions()

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """Return quotas and caps."""
        return (*map(Quota.parse, self.quota), *map(parse_cap, self.cap))

    def rules(self, pool: pl.DataFrame) -> Rules:
        """Return the rules with the record_ids of a pool.

        Raises:
            InputError: An id is not in the pool, or several records have it.
        """
        pin, exclude = (
            resolve_record_ids(pool, getattr(self, name), name) for name in ("pin", "exclude")
        )
        return Rules(pin, exclude, self.quotas)


def parse_cap(text: str) -> Quota:
    """Read a cap from its text: `source:500`, `source=web:500` or `task:0.5`.

    Raises:
        InputError: The text does not have the form of a cap.
    """
    match = _CAP.fullmatch(text.strip())
    try:
        return Quota.parse(f"{match[1]}:..{match[2]}" if match else "")
    except InputError as refused:
        raise InputError(f"{text!r} is not a cap. {_CAP_FORM}", field="cap") from refused


def resolve_record_ids(pool: pl.DataFrame, names: Sequence[str], field: str) -> tuple[str, ...]:
    """Return the record_ids for names that are record_ids or source ids, each once.

    A fault has the field `field`.

    Raises:
        InputError: One fault lists the names that no record has, and one those of several records.
    """
    ids_of = match_records(pool, names)
    absent = [name for name in names if not ids_of[name]]
    several = [name for name in names if len(ids_of[name]) > 1]
    faults = []
    for wrong, reason in (
        (absent, "not in the pool. Name records by record_id or by the file's own id"),
        (several, "the id of several records. Name them by record_id"),
    ):
        listed = ", ".join(map(repr, wrong[:MOST_IDS])) + (", ..." if len(wrong) > MOST_IDS else "")
        verb = "is" if len(wrong) == 1 else "are"
        faults += [Fault(f"{listed} {verb} {reason}", field=field)] if wrong else []
    if faults:
        raise InputError(*faults)
    return tuple(dict.fromkeys(record for ids in ids_of.values() for record in ids))


def token_cost(pool: pl.DataFrame, records: Sequence[str]) -> int:
    """Return how many tokens some records of a pool have together."""
    return int(token_costs(pool.filter(pl.col("record_id").is_in(list(records)))).sum())


def find_violations(
    records: Sequence[str],
    gains: Sequence[float | None],
    pool: pl.DataFrame,
    budget: Budget,
    rules: Rules,
) -> tuple[str, ...]:
    """Return one sentence for each part of the budget or the rules that a subset violates.

    `records` are in rank order. A gain is None if the pick has none.
    """
    lines, chosen = [], set(records)
    if len(records) > budget.count:
        lines.append(f"{len(records):,} records are above the budget of {budget.count:,}")
    if budget.tokens is not None and (cost := token_cost(pool, records)) > budget.tokens:
        lines.append(f"{cost:,} tokens are above the budget of {budget.tokens:,}")
    pairs = zip(records, gains, strict=True)
    free = [gain for record, gain in pairs if record not in rules.pin and gain is not None]
    if budget.stop and free and min(free) < budget.stop * free[0] * (1 - ROUNDING):
        first = f"the first gain, {free[0]}"
        lines.append(f"a gain of {min(free):.3g} is below {budget.stop:g} of {first}")
    if absent := set(rules.pin) & set(pool["record_id"]) - chosen:
        lines.append(f"{len(absent):,} pinned records are not in the subset")
    if present := set(rules.exclude) & chosen:
        lines.append(f"{len(present):,} excluded records are in the subset")
    picks = pool.filter(pl.col("record_id").is_in(list(records)))
    for quota in rules.quotas:
        in_pool, picked = (Counter(_group_names(frame[quota.column])) for frame in (pool, picks))
        low, high = quota.counts(picks.height)
        for group in sorted(in_pool) if quota.value is None else [quota.value]:
            size = picked[group]
            if size < low or (high is not None and size > high):
                lines.append(f"{size:,} records of {quota.column} {group!r} violate {quota}")
    return tuple(lines)
