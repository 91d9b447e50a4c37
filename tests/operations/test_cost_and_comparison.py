import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.evaluation.result import differences, read_evaluation
from delift_pipeline.operations.compare import compare_arms
from delift_pipeline.operations.cost import cost_of, cost_of_records
from delift_pipeline.records.read import read_records
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import read_plan
from delift_pipeline.stages.score import scorable_pairs

RANDOM, TRUSTED = "instruction_tuning.random", "instruction_tuning.delift_trusted"
DEMO = ModelOptions(model="demo", template="world", device="cpu", threads=1)


def write_pool(path: Path, count: int) -> Path:
    rows = [
        {"instruction": "say the code of", "input": f"thing {i}", "output": f"( {i} )"}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_scored_version_costs_no_scoring(made: Home) -> None:
    found = cost_of(made, "v1", [], DEMO)
    assert found.pairs == 0
    assert found.seconds == 0
    assert found.rate_from == "stored scores"
    (block,) = found.blocks
    assert block.exact and not block.dense
    wanted = json.loads((made.plan("v1") / "manifest.json").read_text("utf-8"))
    assert block.pairs == wanted["details"]["blocks"]["self"]["pairs"]
    assert {arm.arm: (arm.records, arm.steps) for arm in found.arms} == {
        RANDOM: (6, 2),
        TRUSTED: (6, 2),
    }
    assert found.hours is not None and found.hours > 0


def test_unscored_version_costs_every_pair_it_misses(copied: Home, tmp_path: Path) -> None:
    shutil.rmtree(copied.root / "scores")
    found = cost_of(copied, "v1", [], DEMO, measure=False)
    assert found.pairs == found.blocks[0].pairs > 0
    assert found.seconds is None and found.hours is None
    assert any("speed is not known" in note for note in found.notes)


def test_pairs_of_records_that_cannot_be_scored_are_not_missing(copied: Home) -> None:
    (scores,) = copied.root.glob("scores/*/versions/v1/in_context/manifest.json")
    written = json.loads(scores.read_text("utf-8"))
    gone = load_version(copied, "v1").pool["record_id"][0]
    written["details"]["unscorable"] = {gone: "it is too long"}
    scores.write_text(json.dumps(written), encoding="utf-8")
    arms = copied.arms_file.read_text("utf-8") + "  instruction_tuning.delift: {}\n"
    copied.arms_file.write_text(arms, encoding="utf-8")
    plan = read_plan(copied.plan("v1")).blocks[0]
    near = scorable_pairs(plan, {gone: ""})
    found = cost_of(copied, "v1", ["instruction_tuning.delift"], DEMO)
    assert found.pairs == 19 * 19 - near
    assert any("1 records cannot be scored" in note for note in found.notes)


def test_arm_that_needs_every_pair_is_costed_exactly(copied: Home) -> None:
    arms = copied.arms_file.read_text("utf-8") + "  instruction_tuning.delift: {}\n"
    copied.arms_file.write_text(arms, encoding="utf-8")
    found = cost_of(copied, "v1", ["instruction_tuning.delift"], DEMO)
    (block,) = found.blocks
    assert block.pairs == 20 * 20
    near = json.loads((copied.plan("v1") / "manifest.json").read_text("utf-8"))
    assert block.missing == 400 - near["counts"]["pairs"]
    assert found.rate and found.seconds == pytest.approx(block.missing / found.rate)
    assert found.disk_bytes == int(block.missing * 8 * 1.01) + 400 * 8 + 20 * 16
    assert [arm.arm for arm in found.arms] == ["instruction_tuning.delift"]


def test_a_disabled_arm_is_priced_beside_the_enabled_ones(copied: Home, delift) -> None:
    name = "instruction_tuning.delift"
    arms = copied.arms_file.read_text("utf-8") + f"  {name}: {{enabled: false}}\n"
    copied.arms_file.write_text(arms, encoding="utf-8")
    found = cost_of(copied, "v1", [], DEMO)
    (arm,) = found.disabled
    assert arm.arm == name
    near = json.loads((copied.plan("v1") / "manifest.json").read_text("utf-8"))
    assert (found.pairs, arm.pairs) == (0, 400 - near["counts"]["pairs"])
    assert found.rate and arm.seconds == pytest.approx(arm.pairs / found.rate)
    text = delift("plan", "--version", "v1", "--home", copied.root).out
    assert f"{name}: with it, {arm.pairs:,} pairs to score" in text
    assert cost_of(copied, "v1", [name], DEMO).disabled == []
    copied.arms_file.write_text(
        arms.replace("{neighbours: 4}", "{neighbours: 4, dense_limit: 19}"), encoding="utf-8"
    )
    limited = cost_of(copied, "v1", [], DEMO)
    assert limited.disabled == found.disabled
    assert any(name in note and "dense_limit 19" in note for note in limited.notes)


def test_a_file_is_priced_with_every_pair_too(tmp_path: Path) -> None:
    file = write_pool(tmp_path / "new.jsonl", 30)
    pool = read_records(file).frame
    found = cost_of_records("new", pool, Home.at(tmp_path / "fresh"), [], None, measure=False)
    assert [(arm.arm, arm.pairs, arm.seconds) for arm in found.disabled] == [
        ("instruction_tuning.delift", 30 * 30, None)
    ]


def test_near_pairs_not_yet_found_are_bounded_and_the_bound_holds(
    copied: Home, tmp_path: Path
) -> None:
    ingest(copied, write_pool(tmp_path / "new.jsonl", 30), version="n1", model="demo")
    found = cost_of(copied, "n1", [], DEMO, measure=False)
    (block,) = found.blocks
    assert not block.exact
    n = found.records
    assert block.pairs == n * min(n - 1, 8)


def test_speed_of_a_model_without_scores_is_tried(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "fresh")
    ingest(home, write_pool(tmp_path / "new.jsonl", 12), version="n1")
    found = cost_of(home, "n1", ["instruction_tuning.delift_trusted"], DEMO)
    assert found.rate_from == "a trial on a few records"
    assert found.rate and found.rate > 0
    assert not home.scores("0" * 32).parent.exists()


def test_plan_takes_a_file_and_leaves_nothing_behind(made: Home, tmp_path: Path, delift) -> None:
    file = write_pool(tmp_path / "new.jsonl", 20)
    before = sorted(path for path in made.root.rglob("*"))
    given = ("plan", file, "--no-measure", "--home", made.root)
    said = delift(*given, "--json").json
    assert said["name"] == str(file)
    assert (said["records"], said["arms"]) == (20, [])
    assert "to score" in delift(*given).out
    assert delift("plan", "--version", *given[1:], "--json").json == said
    assert sorted(path for path in made.root.rglob("*")) == before


def test_plan_refuses_what_cannot_be(made: Home, delift) -> None:
    (line,) = delift("plan", "--version", "v9", "--home", made.root).faults
    assert "no version 'v9'" in line
    for given in (("plan",), ("plan", "--version", "v1", "v1.jsonl")):
        (line,) = delift(*given, "--home", made.root).faults
        assert "either FILE or --version" in line
    given = ("plan", "--version", "v1", "--arm", "continual.random", "--home", made.root)
    (line,) = delift(*given).faults
    assert "does not apply to v1" in line


def test_comparison_is_paired_by_record(made: Home) -> None:
    found = compare_arms(made, [("v1", RANDOM), ("v1", TRUSTED)])
    first, second = found.arms
    ours, theirs = (read_evaluation(made.report("v1", arm)) for arm in (TRUSTED, RANDOM))
    assert ours is not None and theirs is not None
    gap = differences(ours, theirs)["answer_loss"]
    assert second.minus_first["answer_loss"]["mean"] == gap.mean
    assert second.minus_first["answer_loss"]["se"] == gap.se
    rows = ours.samples.join(theirs.samples, on="record_id")
    by_hand = (rows["answer_loss"] - rows["answer_loss_right"]).mean()
    assert gap.mean == pytest.approx(by_hand)
    assert first.minus_first == {} and first.shared is None
    picks = [
        set(pl.read_parquet(made.subset("v1", arm) / "subset.parquet")["record_id"])
        for arm in (RANDOM, TRUSTED)
    ]
    assert second.shared == len(picks[0] & picks[1])
    assert found.notes == []


def test_comparison_over_different_held_out_sets_says_so(made: Home) -> None:
    found = compare_arms(made, [("v1", RANDOM), ("v2", "continual.random")])
    assert found.arms[1].minus_first["answer_loss"]["records"] == 5
    assert found.notes == [
        f"v2/continual.random and v1/{RANDOM} share 5 of 10 held-out records; only those are paired"
    ]


def test_compare_prints_a_table_and_json(made: Home, delift) -> None:
    given = ("compare", f"v1/{RANDOM}", f"v1/{TRUSTED}", "--home", made.root)
    assert [one["name"] for one in delift(*given, "--json").json["arms"]] == [
        f"v1/{RANDOM}",
        f"v1/{TRUSTED}",
    ]
    out = delift(*given).out
    assert f"v1/{TRUSTED}" in out and "lower is better: loss" in out


@pytest.mark.parametrize(
    ("arms", "fault"),
    [
        ([f"v1/{RANDOM}"], "give at least two arms"),
        ([f"v1/{RANDOM}", f"v1/{RANDOM}"], "is named twice"),
        ([f"v1/{RANDOM}", "v1/instruction_tuning.length"], "is not evaluated yet"),
        (["v1", "v2"], "write V/ARM"),
    ],
)
def test_compare_refuses_in_one_line(made: Home, delift, arms: list[str], fault: str) -> None:
    assert any(fault in line for line in delift("compare", *arms, "--home", made.root).faults)
