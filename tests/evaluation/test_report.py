import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.plots import draw_bars, png
from delift_pipeline.evaluation.leaderboard import (
    ROW_SCHEMA,
    leaderboard_frame,
    leaderboard_rows,
    print_leaderboard,
    write_leaderboard,
)
from delift_pipeline.evaluation.report import ArmReport, metric_bars, write_report
from delift_pipeline.evaluation.result import (
    SAMPLE_SCHEMA,
    Evaluation,
    differences,
    read_evaluation,
    summarise,
    write_evaluation,
)
from delift_pipeline.training.log import TrainingLog

FINGERPRINT = "a" * 32
SCRIPT = "<script>alert(1)</script>"


def evaluation(losses: list[float], matches: list[float], generated: str = "one") -> Evaluation:
    count = len(losses)
    texts = {"instruction": SCRIPT, "input": "red", "reference": "one", "generated": generated}
    samples = pl.DataFrame(
        {
            "record_id": [f"{i:032x}" for i in range(count)],
            **{name: [text] * count for name, text in texts.items()},
            "answer_loss": losses,
            "exact_match": matches,
        }
    )
    missing = [name for name in SAMPLE_SCHEMA if name not in samples.columns]
    samples = samples.with_columns(pl.lit(None, pl.Float64()).alias(name) for name in missing)
    samples = samples.select(SAMPLE_SCHEMA.names())
    counts = {"heldout": count, "records": count, "unscorable": 0, "past_limit": 0, "unfinished": 0}
    return Evaluation(summarise(samples), samples, counts, {"max_new_tokens": 5}, seconds=1.0)


INITIAL = evaluation([3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], SCRIPT)
RANDOM = evaluation([2.0, 1.0, 2.0, 1.0], [0.0, 1.0, 0.0, 1.0])
DELIFT = evaluation([1.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], f"{SCRIPT} & more")


def arm_report(selector: str, found: Evaluation, **more: Any) -> ArmReport:
    log = TrainingLog(
        method="lora",
        losses=[3.0, 2.0, 1.0],
        learning_rates=[0.1, 0.1, 0.1],
        steps=3,
        epochs=1.0,
        seconds=2.0,
        tokens=300,
        answer_tokens=90,
        trainable_parameters=10,
        parameters=100,
        records_used=3,
        seed=0,
    )
    subset = pl.DataFrame({"record_id": ["x", "y", "z"], "gain": [3.0, 2.0, 0.5]})
    facts: dict[str, Any] = {
        "version": "v1",
        "arm": f"instruction_tuning.{selector}",
        "stage": "instruction_tuning",
        "selector": selector,
        "seed": 0,
        "budget": 0.3,
        "model": "demo",
        "fingerprint": FINGERPRINT,
        "pool": 10,
        "subset": subset,
        "evaluation": found,
        "options_by_part": {"training": {"steps": 3}},
        "objective": {"name": "fl", "value": 5.5},
        "training": log,
        "lineage": {"subset": "b" * 32},
        "seconds": {"training": 2.0, "evaluation": 1.0},
    }
    return ArmReport(**(facts | more))


@pytest.fixture
def evaluated(home: Home) -> Home:
    """A home with the base model and two arms evaluated."""
    base = home.base_report("v1", FINGERPRINT)
    base.mkdir(parents=True)
    facts = {"kind": "initial", "version": "v1", "fingerprint": FINGERPRINT}
    write_evaluation(base, INITIAL, facts)
    for selector, found in (("random", RANDOM), ("delift", DELIFT)):
        folder = home.report("v1", f"instruction_tuning.{selector}")
        folder.mkdir(parents=True)
        write_report(folder, arm_report(selector, found))
    return home


def test_the_page_names_suspects_with_the_tokens_that_lose_as_text(tmp_path: Path) -> None:
    near = {"text": "c -> d", "tokens": ["<b>", "x"], "change": [-1.5, 0.25]}
    suspect = {"trust": 0.1, "selected": True, "text": "a -> b", "neighbours": [near]}
    write_report(tmp_path, arm_report("delift_trusted", DELIFT, suspects=[suspect]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a -&gt; b" in page and "c -&gt; d: “&lt;b&gt;” −1.500, “x” +0.250" in page


def test_differences_are_paired_by_record() -> None:
    shuffled = Evaluation(RANDOM.metrics, RANDOM.samples.reverse(), RANDOM.counts)
    found = differences(DELIFT, shuffled)
    gaps = [-0.5, -0.5, -1.0, 0.0]
    mean = sum(gaps) / 4
    error = (sum((gap - mean) ** 2 for gap in gaps) / 3 / 4) ** 0.5
    assert found["answer_loss"].mean == pytest.approx(mean)
    assert found["answer_loss"].se == pytest.approx(error)
    assert found["answer_loss"].improvement == pytest.approx(-mean)
    assert found["exact_match"].improvement == pytest.approx(0.25)
    assert "rouge1" not in found


def test_a_report_is_read_back_whole(tmp_path: Path) -> None:
    report = arm_report("delift", DELIFT, beside={"initial": INITIAL, "random": None})
    written = write_report(tmp_path, report)
    assert json.loads((tmp_path / "report.json").read_text()) == written
    assert written["beside"]["random"] is None
    assert written["beside"]["initial"]["differences"]["answer_loss"]["mean"] == -2.0
    assert written["subset"] == {"size": 3, "pool": 10, "gain": 5.5}
    stored = read_evaluation(tmp_path)
    assert stored is not None
    assert stored.samples.equals(DELIFT.samples)
    assert stored.content_hash == DELIFT.content_hash


def test_the_page_is_self_contained_and_escapes_record_text(tmp_path: Path) -> None:
    beside = {"initial": INITIAL, "random": RANDOM, "full": None}
    write_report(tmp_path, arm_report("delift", DELIFT, beside=beside))
    page = (tmp_path / "report.html").read_text()
    assert SCRIPT not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://", page)
    assert "not evaluated yet" in page
    assert "Against initial:" in page
    assert "answer loss 2.000 ± 0.204 better" in page
    assert "exact match no clear difference (+0.250 ± 0.250)" in page
    assert "−0.500 ± 0.204" in page
    assert page.count("<svg") == 4


def test_a_report_without_gains_training_or_neighbours_renders(tmp_path: Path) -> None:
    subset = pl.DataFrame({"record_id": ["x"]})
    bare = arm_report("full", DELIFT, subset=subset, training=None, objective={}, lineage={})
    assert write_report(tmp_path, bare)["training"] is None
    assert "Nothing was trained" in (tmp_path / "report.html").read_text()


def test_leaderboard_rows(evaluated: Home) -> None:
    rows = leaderboard_rows(evaluated)
    assert [row["selector"] for row in rows] == ["delift", "random", "initial"]
    best, random, initial = rows
    assert best["stage"] == "instruction_tuning"
    assert (best["budget"], best["seed"], best["records"], best["pool"]) == (0.3, 0, 3, 10)
    assert best["metrics"]["answer_loss"] == pytest.approx(1.0)
    assert best["minus_random"]["answer_loss"]["mean"] == pytest.approx(-0.5)
    assert random["minus_random"] == {}
    assert (initial["arm"], initial["budget"], initial["records"]) == ("initial", None, 0)
    assert initial["minus_random"]["exact_match"]["mean"] == pytest.approx(-0.5)


def test_leaderboard_page_and_table(evaluated: Home) -> None:
    page = write_leaderboard(evaluated, leaderboard_rows(evaluated)).read_text()
    assert page.index("<td>delift</td>") < page.index("<td>random</td>")
    assert "may lose to random" in page
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://", page)
    stored = pl.read_parquet(evaluated.leaderboard / "leaderboard.parquet")
    assert stored.schema == ROW_SCHEMA
    assert stored["answer_loss_minus_random"].to_list()[0] == pytest.approx(-0.5)
    # The leaderboard's own page is no arm's report.
    assert len(leaderboard_rows(evaluated)) == 3


def test_an_empty_home_has_an_empty_leaderboard(home: Home) -> None:
    assert leaderboard_rows(home) == []
    assert leaderboard_frame([]).schema == ROW_SCHEMA
    assert "No arm has been evaluated yet" in write_leaderboard(home, []).read_text()


def test_printed_leaderboard(evaluated: Home) -> None:
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_leaderboard(leaderboard_rows(evaluated), console)
    text = console.export_text()
    assert "instruction_tuning on v1" in text
    assert "4 held-out records" in text
    assert "−0.500 ± 0.204" in text


def test_score_bars_are_a_png() -> None:
    models = [("delift", DELIFT.metrics, "chosen"), ("random", RANDOM.metrics, "plain")]
    panels = metric_bars(models)
    assert list(panels) == ["answer loss, lower is better", "exact match, higher is better"]
    assert [bar.text for bar in panels["answer loss, lower is better"]] == [
        "1.000 ± 0.204",
        "1.500 ± 0.289",
    ]
    assert png(draw_bars(panels)).startswith(b"\x89PNG")
