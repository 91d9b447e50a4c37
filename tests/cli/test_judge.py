"""`delift judge` on stored answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, write_evaluation

Delift = Callable[..., Any]
ARMS = ("v1/instruction_tuning.random", "v1/instruction_tuning.delift", "v1/initial")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with the answers of two arms and of the base model."""
    home = Home.at(tmp_path / "home")
    folders = [
        home.report("v1", "instruction_tuning.random"),
        home.report("v1", "instruction_tuning.delift"),
        home.base_report("v1", "0" * 32),
    ]
    for place, folder in enumerate(folders):
        rows = [
            {
                "record_id": f"{i:032x}",
                "instruction": "<b>Name</b> it",
                "input": "",
                "reference": "4",
                "generated": str(place * i),
            }
            for i in range(4)
        ]
        samples = pl.DataFrame(rows, schema=SAMPLE_SCHEMA)
        folder.mkdir(parents=True)
        write_evaluation(folder, Evaluation({}, samples, {}), {"kind": "arm"})
    return home


def test_arms_are_judged_side_by_side_and_once(
    delift: Delift, home: Home, chat_folder: Path
) -> None:
    local = (
        "--judge",
        chat_folder,
        "--scoring",
        "expected",
        "--least-mass",
        "0",
        "--home",
        home.root,
    )
    small = ("--window", 4096, "--device", "cpu", "--json")
    estimate = delift("judge", *ARMS, *local, *small, "--estimate").json
    assert (estimate["questions"], estimate["requests"]) == (12, 6)
    found = delift("judge", *ARMS, *local, *small).json
    assert [one["arm"] for one in found] == list(ARMS)
    assert all(1 < one["overall"]["mean"] < 5 for one in found)
    assert found[0]["minus_first"] is None
    gap = found[1]["minus_first"]
    means = [one["overall"]["mean"] for one in found]
    assert gap["mean"] == pytest.approx(means[1] - means[0])
    assert gap["records"] == 4
    pages = list(home.root.glob("judgements/*/v1/*/judged.html"))
    assert len(pages) == 3
    assert all("<svg" in page.read_text() for page in pages)
    assert delift("judge", *ARMS, *local, *small, "--estimate").json["requests"] == 0
    assert delift("judge", *ARMS, *local, *small).json == found


def test_what_cannot_be_judged_is_refused_in_a_sentence(delift: Delift, home: Home) -> None:
    given = ("--judge", "x", "--endpoint", "http://127.0.0.1:9/v1", "--home", home.root)
    faults = delift("judge", "v1/instruction_tuning.full", *given).faults
    assert faults == ["arm: v1/instruction_tuning.full has no report yet. Evaluate it first"]
    assert delift("judge", "v1", *given).faults == [
        "arm: 'v1': write VERSION/ARM or VERSION/initial"
    ]
    assert "--dtype is for a judge that runs here" in "".join(
        delift("judge", ARMS[0], *given, "--dtype", "bfloat16").faults
    )
    faults = delift("judge", ARMS[0], *given, "--mode", "both", "--parallel", "0").faults
    assert [fault.partition(":")[0] for fault in faults] == ["mode", "parallel"]
