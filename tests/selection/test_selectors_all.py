"""All selectors by the one door: demo world and public data."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.pools import Sizes, draw_pool, score_pool
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.registry import SELECTORS
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs
from delift_pipeline.stages.file_selection import Request
from delift_pipeline.stages.select_file import select_file

ALL = (
    "initial full random length delift delift_trusted delift_se selectit less deft_ucs rds_plus "
    "ifd nuggets qdit wici tsds"
).split()
# Small for the machine, and without a download; everything else is as shipped.
SMALL: dict[str, dict[str, Any]] = {
    "less": {"rank": 2, "alpha": 4, "dims": 512, "epochs": 2},
    "deft_ucs": {"embedder": "tfidf"},
    "delift_se": {"embedder": "tfidf"},
    "delift": {"pairs": "neighbours"},
    "qdit": {"embedder": "tfidf"},
    "wici": {"embedder": "tfidf"},
    "tsds": {"embedder": "tfidf"},
}
SIZES = {"initial": 0, "full": 150}


@pytest.mark.parametrize("stage", ["instruction_tuning", "task_specific", "continual"])
def test_every_selector_chooses_from_the_demo_world(tmp_path: Path, stage: Any) -> None:
    drawn = draw_pool(stage, 3, 0.0, Sizes(pool=40, heldout_per_task=1, target=6))
    needs = Needs("neighbours", target_pairs=True, existing_pairs=True)
    inputs = score_pool(Home.at(tmp_path), "demo", drawn, [needs]).inputs
    known = set(inputs.records["record_id"])
    for name in ALL:
        found = select(inputs, name, 8, 0, SMALL.get(name, {}))
        count = {"initial": 0, "full": inputs.pool.height}.get(name, 8)
        assert len(found.ranking) == len(set(found.ranking)) == count, name
        assert set(found.ranking) <= known, name
        again = select(inputs, name, 8, 0, SMALL.get(name, {}))
        assert again.ranking == found.ranking, name


def test_all_are_registered() -> None:
    assert set(ALL) == set(SELECTORS)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("data", "window"), [("squad", 192), ("gsm8k", 512)])
def test_every_selector_chooses_from_public_data(
    tmp_path: Path, shared_data: Path, stories: Path, data: str, window: int
) -> None:
    file = tmp_path / "pool.jsonl"
    lines = (shared_data / data / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:150]), encoding="utf-8")
    ids = set(pl.read_ndjson(file)["id"])
    model = ModelOptions(model=str(stories), window=window, device="cpu", threads=1)
    home = Home.at(tmp_path / "home")
    for name in ALL:
        outs = [tmp_path / f"{name}-{turn}.jsonl" for turn in (1, 2)]
        for out in outs:
            select_file(home, request(file, name, out), model, SilentProgress())
        assert outs[0].read_bytes() == outs[1].read_bytes(), name
        chosen = [] if name == "initial" else pl.read_ndjson(outs[0])["id"].to_list()
        assert len(chosen) == len(set(chosen)) == SIZES.get(name, 45), name
        assert set(chosen) <= ids, name


def request(file: Path, selector: str, out: Path) -> Request:
    return Request(file, selector=selector, budget="0.3", out=out, options=SMALL.get(selector, {}))
