"""Arms with budgets in tokens, `auto` and rules: subset, manifest and blocking check."""

import json
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from assets.outcome import Outcome
from assets.selection import subset_outcome
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import read_arms
from delift_pipeline.stages.subset import make_subset

MODEL = ModelOptions(model="demo", template="world", threads=1)
ARMS = """
arms:
  instruction_tuning.delift_se:
    training: {{steps: 1}}
    options: {{embedder: tfidf}}
    budget: {budget}
    rules: {rules}
    balance: {balance}
"""


@pytest.fixture
def stored(home: Home, tmp_path: Path) -> Home:
    pool, held = tmp_path / "pool.jsonl", tmp_path / "held.jsonl"
    rows = [
        {"id": f"r{k}", "instruction": f"say word {k} of {k % 7}", "output": f"w{k % 5}",
         "task": "ab"[k % 2], "topic": "rare" if k == 7 else f"t{k % 3}"}
        for k in range(30)
    ]  # fmt: skip
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held.write_text(json.dumps({"instruction": "another", "output": "x"}), encoding="utf-8")
    ingest(home, pool, version="v1", heldout=held, keep=("topic",))
    return home


def made(
    home: Home, budget: object, rules: str = "{}", balance: str = "[]"
) -> tuple[Outcome, pl.DataFrame]:
    text = ARMS.format(budget=budget, rules=rules, balance=balance)
    (arm,) = read_arms(text, "arms.yaml")
    outcome = subset_outcome(make_subset(home, "v1", arm, MODEL))
    return outcome, pl.read_parquet(home.subset("v1", arm.name) / "subset.parquet")


def test_a_budget_in_tokens_is_kept_and_recorded(stored: Home) -> None:
    outcome, subset = made(stored, "60tokens")
    assert 0 < subset.height < 30
    assert 0 < outcome.manifest.details["tokens"] <= 60
    assert outcome.checks["budget"].passed and "budget is 60" in outcome.checks["budget"].note
    again, _ = made(stored, "60tokens")
    assert again.reused and again.checks["budget"].passed


def test_auto_stops_and_the_knee_is_recorded(stored: Home) -> None:
    outcome, subset = made(stored, "auto:0.3")
    gains = subset.sort("rank")["gain"]
    assert 1 < len(gains) < 30 and gains.min() >= 0.3 * gains[0]
    assert outcome.facts["knee"] == outcome.manifest.details["knee"] >= 1
    assert outcome.checks["budget"].passed


def test_rules_are_kept_and_belong_to_what_was_asked(stored: Home) -> None:
    plain, free = made(stored, 6)
    out = next(n for n in free.sort("rank")["source_id"] if n not in ("r1", "r3", "r5"))
    rules = f"{{pin: [r1, r3, r5], exclude: [{out}], quota: ['task:0.5..0.5']}}"
    outcome, subset = made(stored, 6, rules)
    assert not outcome.reused and outcome.checks["budget"].passed
    assert Counter(int(name[1:]) % 2 for name in subset["source_id"]) == {0: 3, 1: 3}
    assert {"r1", "r3", "r5"} <= set(subset["source_id"]) and out not in set(subset["source_id"])
    assert outcome.manifest.request["rules"]["exclude"] == [out]
    assert "rules" not in plain.manifest.request


def test_the_balance_is_taken_by_a_kept_column_and_warns_of_what_vanishes(stored: Home) -> None:
    plain, _ = made(stored, 6, "{exclude: [r7]}")
    outcome, _ = made(stored, 6, "{exclude: [r7]}", "[topic]")
    assert not outcome.reused and outcome.manifest.content_hash == plain.manifest.content_hash
    table = pl.read_parquet(
        stored.subset("v1", "instruction_tuning.delift_se") / "balance.parquet"
    ).filter(pl.col("by") == "topic")
    assert dict(table.select("group", "pool").iter_rows()) == {
        "t0": 10,
        "t1": 9,
        "t2": 10,
        "rare": 1,
    }
    assert table.filter("vanished")["group"].to_list() == ["rare"]
    check = outcome.checks["balance"]
    assert not check.passed and "1 group by topic is not in the subset: rare (1)" in check.note
    whole, _ = made(stored, 30, balance="[topic]")
    assert (
        whole.checks["balance"].passed and "length, script, topic" in whole.checks["balance"].note
    )
    absent, _ = made(stored, 30, balance="[colour]")
    note = absent.checks["balance"].note
    assert "colour" in note and "--keep" in note
    assert not absent.checks["balance"].passed


def test_rules_may_name_a_kept_column(stored: Home) -> None:
    outcome, subset = made(stored, 6, "{quota: ['topic=rare:1..', 'topic=t0:0..1']}")
    kept = pl.read_parquet(stored.dataset("v1") / "columns.parquet")
    topics = Counter(subset.join(kept, on="record_id")["topic"])
    assert topics["rare"] == 1 and topics["t0"] <= 1 and outcome.checks["budget"].passed
    with pytest.raises(InputError, match="the pool has no column colour"):
        made(stored, 6, "{quota: ['colour=red:1..']}")


def test_the_check_fails_for_a_subset_that_breaks_its_rules(stored: Home) -> None:
    rules = "{exclude: [r1]}"
    _, subset = made(stored, 5, rules)
    file = stored.subset("v1", "instruction_tuning.delift_se") / "subset.parquet"
    banned = pl.read_parquet(file.with_name("dropped.parquet")).filter(pl.col("source_id") == "r1")
    swapped = subset.with_columns(
        record_id=pl.when(pl.col("rank") == 4)
        .then(pl.lit(banned["record_id"][0]))
        .otherwise("record_id")
    )
    swapped.write_parquet(file)
    outcome, _ = made(stored, 5, rules)
    assert outcome.reused and not outcome.checks["budget"].passed
    assert "1 excluded records are in the subset" in outcome.checks["budget"].note


def test_rules_that_no_subset_keeps_are_refused(stored: Home) -> None:
    with pytest.raises(InputError, match="at most 2 records of 6"):
        made(stored, 6, "{cap: ['task:1']}")
    with pytest.raises(InputError, match="'r99' is not in the pool"):
        made(stored, 6, "{pin: [r99]}")


@pytest.mark.parametrize(
    ("budget", "rules", "field"),
    [
        ("0tokens", "{}", "budget"),
        ("auto:3", "{}", "budget"),
        ("5", "{quota: [task]}", "rules.quota"),
        ("5", "{cap: ['task:x']}", "rules.cap"),
        ("5", "{colour: [r1]}", "rules.colour"),
        ("5", "3", "rules"),
    ],
)
def test_a_file_that_asks_for_nonsense_names_the_field(budget: str, rules: str, field: str) -> None:
    with pytest.raises(InputError) as refused:
        read_arms(ARMS.format(budget=budget, rules=rules, balance="[]"), "arms.yaml")
    assert refused.value.faults[0].field == f"arms.instruction_tuning.delift_se.{field}"
