"""A home whose reports were written before a metric existed: it counts as not evaluations."""

from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.leaderboard import leaderboard_page, leaderboard_rows
from delift_pipeline.evaluation.result import SAMPLES, read_evaluation
from delift_pipeline.lineage.promotion import measured_records
from delift_pipeline.lineage.record import record_lineage
from delift_pipeline.operations.compare import compare_arms
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.report import make_report

RANDOM, TRUSTED = "instruction_tuning.random", "instruction_tuning.delift_trusted"
DEMO = ModelOptions(model="demo", template="world", device="cpu", threads=1)


def drop_metric(home: Home, metric: str, folders: str = "*") -> None:
    """Rewrite samples as a release without that metric wrote them."""
    paths = list((home.root / "reports").glob(f"*/{folders}/*{SAMPLES}"))
    assert paths
    for path in paths:
        pl.read_parquet(path).drop(metric).write_parquet(path)


def metrics_of(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["version"], row["arm"], row["metrics"], row["minus_random"]) for row in rows]


def test_a_metric_that_nobody_asked_for_changes_nothing(copied: Home) -> None:
    before = leaderboard_rows(copied), compare_arms(copied, [("v1", RANDOM), ("v1", TRUSTED)])
    drop_metric(copied, "rouge2")
    after = leaderboard_rows(copied), compare_arms(copied, [("v1", RANDOM), ("v1", TRUSTED)])
    assert metrics_of(after[0]) == metrics_of(before[0])
    assert after[1] == before[1]


def test_a_metric_that_one_side_lacks_has_no_difference(copied: Home) -> None:
    drop_metric(copied, "exact_match", RANDOM)
    (trusted,) = compare_arms(copied, [("v1", RANDOM), ("v1", TRUSTED)]).arms[1:]
    assert set(trusted.minus_first) == {"answer_loss"}
    found = {row["arm"]: row for row in leaderboard_rows(copied) if row["version"] == "v1"}
    assert set(found[TRUSTED]["minus_random"]) == {"answer_loss"}
    assert "exact match" in leaderboard_page(list(found.values()))
    evaluation = read_evaluation(copied.report("v1", RANDOM))
    assert evaluation is not None
    assert (
        measured_records(evaluation, "exact_match")
        == set()
        != measured_records(evaluation, "answer_loss")
    )


@pytest.mark.parametrize(("version", "arm"), [("v1", TRUSTED), ("v2", "continual.delift_trusted")])
def test_a_report_is_made_again_from_what_is_stored(copied: Home, version: str, arm: str) -> None:
    before = read_manifest(copied.report(version, arm))
    assert before is not None
    # Everything that the report is read beside is of the earlier release, and so is half of it.
    drop_metric(copied, "exact_match", "*random")
    drop_metric(copied, "exact_match", "initial-*")
    outcome = make_report(copied, version, load_arms(copied).arm(arm), DEMO, None, SilentProgress())
    assert outcome.reused
    assert outcome.manifest.content_hash == before.content_hash
    assert "exact_match" in outcome.evaluations.own.metrics


def test_a_report_of_an_earlier_release_is_written_again_without_the_metric(copied: Home) -> None:
    drop_metric(copied, "exact_match")
    arm = load_arms(copied).arm("continual.delift_trusted")
    outcome = make_report(copied, "v2", arm, DEMO, None, SilentProgress())
    assert outcome.reused
    page = (copied.report("v2", arm.name) / "report.html").read_text(encoding="utf-8")
    assert "answer loss" in page


def test_the_history_of_a_record_shows_a_metric_that_only_later_reports_have(
    copied: Home,
) -> None:
    evaluation = read_evaluation(copied.report("v1", TRUSTED))
    assert evaluation is not None
    record = evaluation.samples["record_id"][0]
    drop_metric(copied, "exact_match", TRUSTED)  # read first, by its name
    measured = {one["arm"]: one for one in record_lineage(copied, record).measured}
    assert "exact_match" not in measured[TRUSTED]
    assert "exact_match" in measured[RANDOM]
