"""Pins, exclusions, quotas and caps as they are written in `arms.yaml` and on the command line."""

import re
from collections.abc import Sequence

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.stored import matching_records
from delift_pipeline.selection.rules import Quota, Rules

NAMED = 5
_CAP = re.compile(r"([^:]+):([0-9.]+)")
_CAP_FORM = "write a cap as column:most or column=value:most, such as source:500"


class RuleOptions(BaseModel):
    """What is asked of a subset beside its size.

    Attributes:
        pin: Records that are in: record_ids or the file's own ids.
        exclude: Records that are out.
        quota: `COLUMN:LOW..HIGH` for every value of a column, `COLUMN=VALUE:LOW..HIGH` for one;
            ends below 1 with a point in them are shares of the budget, whole numbers counts.
        cap: `COLUMN:MOST`, at most so many records of every value of a column.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pin: tuple[str, ...] = Field(default=(), description="Records that are in, by their ids.")
    exclude: tuple[str, ...] = Field(default=(), description="Records that are out, by their ids.")
    quota: tuple[str, ...] = Field(
        default=(), description="COLUMN:LOW..HIGH or COLUMN=VALUE:LOW..HIGH, e.g. task:0.1..0.4."
    )
    cap: tuple[str, ...] = Field(
        default=(), description="COLUMN:MOST, at most so many of each value, e.g. source:500."
    )

    @field_validator("quota", "cap")
    @classmethod
    def _written_well(cls, written: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        try:
            for text in written:
                (parse_cap if info.field_name == "cap" else Quota.parse)(text)
        except Refused as refused:
            raise ValueError(refused.faults[0].reason) from refused
        return written

    @property
    def asked(self) -> bool:
        """Whether anything is asked at all."""
        return self != RuleOptions()

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """Quotas and caps."""
        return (*map(Quota.parse, self.quota), *map(parse_cap, self.cap))

    def rules(self, pool: pl.DataFrame) -> Rules:
        """The rules in record_ids of a pool.

        Raises:
            Refused: a record that is named is not in the pool, or its id fits several.
        """
        pin, exclude = (
            records_named(pool, given, field)
            for given, field in ((self.pin, "pin"), (self.exclude, "exclude"))
        )
        return Rules(pin, exclude, self.quotas)


def parse_cap(text: str) -> Quota:
    """A cap as written: `source:500`, `source=web:500`, `task:0.5`.

    Raises:
        Refused: it is not written as a cap.
    """
    found = _CAP.fullmatch(text.strip())
    if found is None:
        raise Refused(Fault(f"{text!r} is no cap: {_CAP_FORM}", field="cap"))
    try:
        return Quota.parse(f"{found[1]}:..{found[2]}")
    except Refused as refused:
        raise Refused(Fault(f"{text!r} is no cap: {_CAP_FORM}", field="cap")) from refused


def records_named(pool: pl.DataFrame, names: Sequence[str], field: str) -> tuple[str, ...]:
    """The record_ids meant by record_ids or the file's own ids, each once.

    Args:
        pool: Records with record_id and, perhaps, source_ids.
        names: What was given.
        field: The option it was given to.

    Raises:
        Refused: one fault for the names that are no record's, and one for those that fit several.
    """
    found = matching_records(pool, names)
    absent = [name for name in names if not found[name]]
    several = [name for name in names if len(found[name]) > 1]
    faults = [
        Fault(f"{_named(wrong)} {said}", field=field)
        for wrong, said in (
            (absent, "not in the pool: name records by record_id or by the file's own id"),
            (several, "the id of several records: name them by record_id"),
        )
        if wrong
    ]
    if faults:
        raise Refused(*faults)
    return tuple(dict.fromkeys(record for ids in found.values() for record in ids))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
