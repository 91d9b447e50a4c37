"""Rules as they are written, and whether a subset keeps to them."""

import polars as pl
import pytest
from pydantic import ValidationError

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.rules import (
    Quota,
    RuleOptions,
    Rules,
    find_violations,
    parse_cap,
    resolve_record_ids,
    token_cost,
)

POOL = pl.DataFrame(
    {
        "record_id": ["a", "b", "c", "d"],
        "source_ids": [["1", "2"], ["3"], ["4"], ["4"]],
        "source": ["web", "web", "book", None],
        "tokens": [1, 2, 4, 8],
    }
)


def test_a_cap_is_a_quota_without_a_least_count() -> None:
    assert parse_cap("source:500") == Quota("source", None, 0, 500)
    assert parse_cap("source=web:0.5") == Quota("source", "web", 0, 0.5)
    assert RuleOptions(cap=("source:2",), quota=("source:1..",)).quotas == (
        Quota("source", None, 1, None),
        Quota("source", None, 0, 2),
    )


@pytest.mark.parametrize("text", ["source", "source:", ":3", "source:1..2", "source:x", "s:1.5"])
def test_what_is_no_cap_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a cap"):
        parse_cap(text)
    with pytest.raises(ValidationError, match="not a cap"):
        RuleOptions(cap=(text,))


def test_records_are_named_by_either_id() -> None:
    assert resolve_record_ids(POOL, ["3", "a", "1"], "pin") == ("b", "a")
    with pytest.raises(InputError) as refused:
        resolve_record_ids(POOL, ["9", "4", "8"], "pin")
    absent, several = refused.value.faults
    assert absent.reason.startswith("'9', '8' are not in the pool")
    assert several.reason.startswith("'4' is the id of several records")


Ranked = tuple[tuple[str, ...], tuple[float | None, ...], pl.DataFrame]


def ranked(*records: str, gains: tuple[float | None, ...] | None = None) -> Ranked:
    return records, gains or (None,) * len(records), POOL


@pytest.mark.parametrize(
    ("found", "budget", "rules", "said"),
    [
        (ranked("a", "b"), Budget(1), Rules(), "2 records are above the budget of 1"),
        (ranked("c", "d"), Budget(4, tokens=11), Rules(), "12 tokens are above the budget of 11"),
        (ranked("a", "b", gains=(1.0, 0.1)), Budget(4, stop=0.2), Rules(), "below 0.2 of the"),
        (ranked("a"), Budget(1), Rules(pin=("b",)), "1 pinned records are not in"),
        (ranked("a"), Budget(1), Rules(exclude=("a",)), "1 excluded records are in"),
        (ranked("a", "b"), Budget(2), Rules(quotas=(parse_cap("source:1"),)), "2 records of"),
        (ranked("a"), Budget(1), Rules(quotas=(Quota("source", "book", 1),)), "0 records of"),
        (ranked("a", "c"), Budget(2), Rules(quotas=(Quota("source", None, 1),)), "0 records of"),
    ],
)
def test_what_is_broken_is_said(found: Ranked, budget: Budget, rules: Rules, said: str) -> None:
    (sentence,) = find_violations(*found, budget, rules)
    assert said in sentence


def test_what_is_kept_is_not_complained_of() -> None:
    everything = Rules(("d",), ("b",), (parse_cap("source:0.5"), Quota("source", "book", 1)))
    found = ranked("d", "c", gains=(0.01, 5.0))
    assert find_violations(*found, Budget(2, tokens=12, stop=0.5), everything) == ()
    assert token_cost(POOL, ["d", "c"]) == 12
