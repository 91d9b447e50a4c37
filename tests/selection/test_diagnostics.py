"""Trust of the picks, near duplicates, a planted wrong record, and the balance."""

import numpy as np
import polars as pl
import pytest

from assets.selection import trust_check
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.selection.diagnostics import (
    add_diagnostics,
    balance_table,
    length_quarters,
    main_script,
    vanished_group_warnings,
)
from delift_pipeline.selection.embedding import similarities
from delift_pipeline.selection.objectives import Coverage
from delift_pipeline.selection.result import Diagnostics, self_shares, subset_frames
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.trust import (
    evidence_of,
    near_duplicates,
    record_line,
    suspects_frame,
    trust_from_agreement,
)

IDS = tuple("abcdefgh")
WRONG = "c"


def pool() -> pl.DataFrame:
    prompts = [f"code of {'cat' if k < 4 else 'dog'} {k}" for k in range(8)]
    return pl.DataFrame(
        {
            "record_id": IDS,
            "instruction": prompts,
            "input": [""] * 8,
            "output": ["one", "one", "nine", "one", "two", "two", "two", "two"],
            "source_ids": [[f"s-{i}"] for i in IDS],
            "task": ["cats"] * 4 + ["dogs"] * 3 + ["rare"],
            "source": ["x"] * 8,
        }
    )


def near() -> Block:
    """Equal animals help each other, but for the wrong record, which hurts and is hurt."""
    utility = np.zeros((8, 8), dtype=np.float32)
    for half in (range(4), range(4, 8)):
        for i in half:
            for j in half:
                wrong = WRONG in (IDS[i], IDS[j])
                utility[i, j] = 0 if i == j else -0.3 if wrong else 0.4
    return Block("neighbours", IDS, IDS, as_columns(utility), "hash")


def inputs() -> SelectionInputs:
    return SelectionInputs("instruction_tuning", pool(), lambda name, form: near())


def test_a_planted_wrong_record_is_named_with_the_neighbours_that_disagree() -> None:
    trust = trust_from_agreement(near(), pool())
    found = suspects_frame(trust, {"c"}, pool())
    assert found["record_id"].to_list() == [WRONG] and found["selected"].to_list() == [True]
    neighbours = found["neighbours"].to_list()[0]
    assert {one["record_id"] for one in neighbours} == {"a", "b", "d"}
    assert all(one["helps"] == one["helped"] == pytest.approx(-0.3) for one in neighbours)
    evidence, right = evidence_of(trust, WRONG), evidence_of(trust, "f")
    assert evidence is not None and right is not None and evidence_of(trust, "z") is None
    assert evidence.is_suspected and all(one.disagrees for one in evidence.neighbours)
    assert not right.is_suspected and not any(one.disagrees for one in right.neighbours)
    texts = {row["record_id"]: row for row in pool().iter_rows(named=True)}
    assert record_line(texts, "a") == "code of cat 0 -> one" and record_line(texts, "z") == "z"
    assert record_line(texts, "a", 5) == "code…"


def test_trusted_selection_leaves_the_wrong_record_to_the_last() -> None:
    found = select(inputs(), "delift_trusted", 7, 0, {})
    assert WRONG not in found.ranking


@pytest.mark.parametrize("selector", ["delift_trusted", "random", "delift_se", "full"])
def test_every_selection_is_diagnosed(selector: str) -> None:
    options = {"embedder": "tfidf"} if selector == "delift_se" else {}
    found = add_diagnostics(inputs(), select(inputs(), selector, 4, 0, options))
    numbers, trust = found.diagnostics, trust_from_agreement(near(), pool())
    assert numbers is not None and numbers.coverage is not None
    assert numbers.trust_picks == pytest.approx(trust.of(found.ranking).mean())
    assert numbers.trust_pool == pytest.approx(trust.trust.mean())
    assert numbers.suspected_pool == pytest.approx(1 / 8)
    assert Diagnostics.from_json(numbers.as_json()) == numbers
    subset, dropped = subset_frames(found, pool())
    assert subset["trust"].null_count() == dropped["trust"].null_count() == 0
    if selector == "full":
        assert numbers.coverage == pytest.approx(1) and numbers.trust_difference == 0


def test_picks_less_trusted_than_the_pool_are_a_warning() -> None:
    low = Diagnostics(0.5, 0.8, 0.4, 0.1, 0.6, 0.5)
    assert low.trust_difference == pytest.approx(-0.3)
    assert low.lines()[-1].startswith("warning: the picks have less trust") and low.warnings
    assert Diagnostics(0.9, 0.8, 0.0, 0.1).warnings == () == Diagnostics().lines()
    assert len(Diagnostics(0.9, 0.8, 0.0, 0.1, 0.5, 0.4).lines()) == 2


@pytest.mark.parametrize(("picks", "alarm"), [(0.8, False), (0.7905, False), (0.7895, True)])
def test_the_warning_and_the_check_are_silent_below_a_difference_of_a_hundredth(
    picks: float, alarm: bool
) -> None:
    numbers = Diagnostics(picks, 0.8, 0.0, 0.0)
    assert bool(numbers.warnings) is alarm
    assert trust_check(numbers).passed is not alarm


def test_without_near_pairs_trust_is_not_known() -> None:
    blind = SelectionInputs("instruction_tuning", pool())
    found = add_diagnostics(blind, select(blind, "random", 4, 0, {}))
    assert found.trust is None and found.diagnostics is not None
    assert found.diagnostics.trust_difference is None
    assert found.diagnostics.coverage is not None


def test_near_duplicates_are_grouped() -> None:
    frame = pl.DataFrame(
        {
            "record_id": list("dcba"),
            "instruction": ["say one two three", "say one two three", "other words", "quite new"],
            "input": [""] * 4,
            "output": ["four", "four", "here", "text"],
        }
    )
    for limit in (4, 0):
        assert near_duplicates(similarities(frame, dense_limit=limit)) == {"c": 0, "d": 0}


def test_self_shares() -> None:
    kernel = np.array([[1.0, 0.5], [0.5, 1.0], [0.5, 0.0]])
    assert self_shares(Coverage(kernel), [0, 1], [0, 1], np.array([2.0, 0.5])) == (0.5, 1.0)
    covered = Coverage(kernel, floor=np.array([0.5, 0.0, 0.5]))
    assert self_shares(covered, [0, 1], [0, -1], np.array([1.0, 0.0])) == (0.5, None)
    weighted = Coverage(kernel, weights=np.array([2.0, 1.0, 1.0]))
    assert self_shares(weighted, [0], [0], np.array([3.0]))[0] == pytest.approx(2 / 3)


def test_the_balance_names_groups_that_vanish() -> None:
    table = balance_table(pool(), ["a", "b", "e", "replayed"], {"colour": ["red"] * 7 + [None]})
    tasks = table.filter(pl.col("by") == "task").rows_by_key("group", named=True, unique=True)
    assert tasks["rare"]["vanished"] and not tasks["cats"]["vanished"]
    assert tasks["cats"]["shift"] == pytest.approx(2 / 3 - 1 / 2)
    assert table.filter(pl.col("by") == "colour")["group"].to_list() == ["red", "(none)"]
    assert set(table["by"]) == {"task", "source", "length", "script", "colour"}
    lines = vanished_group_warnings(table)
    assert any("1 group by task is not in the subset: rare (1)" in line for line in lines)
    for _, part in table.group_by("by"):
        assert part["pool_share"].sum() == pytest.approx(1)
        assert part["shift"].sum() == pytest.approx(0)


def test_scripts_and_lengths() -> None:
    assert [main_script(t) for t in ("abc é", "где кот", "你好 a", "123 !", "")] == [
        "latin",
        "cyrillic",
        "cjk",
        "none",
        "none",
    ]
    assert length_quarters([]) == []
    assert length_quarters(["a", "bb", "ccc", "dddd"])[0::3] == [
        "shortest quarter",
        "longest quarter",
    ]
    assert set(length_quarters(["same"] * 5)) == {"shortest quarter"}
