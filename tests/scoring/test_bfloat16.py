"""What bfloat16 costs on a trained model: the packaged one, which learns from demonstrations."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.demo.dataset import write_demo_files
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Job, reduce_scores
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import Dtype, ModelOptions
from delift_pipeline.selection.objectives import FacilityLocation
from delift_pipeline.selection.optimizers import lazy_greedy

RECORDS = 80
DISTANCE_BOUND, UTILITY_BOUND, UTILITY_RMS, OVERLAP_BOUND = 0.03, 0.06, 0.01, 0.75


class Scored(NamedTuple):
    """d(i | nothing) [records], and U [target, demonstration]."""

    alone: np.ndarray
    utility: np.ndarray


def demo_records(folder: Path) -> pl.DataFrame:
    files = write_demo_files(folder)
    lines = files.first_pool.read_text("utf-8").splitlines()[:RECORDS]
    rows = [json.loads(line) for line in lines]
    return pl.DataFrame(
        {
            "record_id": [f"{place:032x}" for place in range(len(rows))],
            **{name: [row[name] for row in rows] for name in ("instruction", "input", "output")},
        }
    )


def scored(dtype: Dtype, frame: pl.DataFrame) -> Scored:
    loaded = load_model(ModelOptions(model="demo", template="world", dtype=dtype, threads=1))
    records: EncodedRecords = loaded.encoder.encode(frame)
    rows = np.arange(len(records))
    jobs = [Job(records.prefix(), rows), *(Job(records.prefix(j), rows) for j in rows.tolist())]
    engine = engine_for(loaded)
    assert engine.settings["path"] == "layers"
    found = [np.sqrt(reduce_scores(each).squared_distance) for each in engine.score(records, jobs)]
    return Scored(found[0], (found[0] - np.stack(found[1:])).T)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scored, Scored]:
    torch.set_num_threads(1)
    frame = demo_records(tmp_path_factory.mktemp("demo"))
    return scored("float32", frame), scored("bfloat16", frame)


def picks(found: Scored, budget: int) -> set[int]:
    kernel = np.ascontiguousarray(np.maximum(found.utility, 0), dtype=np.float32)
    np.fill_diagonal(kernel, 0)
    order = np.arange(len(kernel))
    return set(lazy_greedy(FacilityLocation(kernel), budget, order).picks.tolist())


def test_distances_and_utilities_in_bfloat16_stay_within_the_stated_bounds(
    both: tuple[Scored, Scored],
) -> None:
    full, half = both
    assert np.ptp(full.utility) > 0.5
    assert np.abs(full.alone - half.alone).max() <= DISTANCE_BOUND
    gaps = np.abs(full.utility - half.utility)
    assert gaps.max() <= UTILITY_BOUND
    assert np.sqrt(np.mean(gaps**2)) <= UTILITY_RMS


def test_rankings_in_bfloat16_choose_most_of_the_same_records(
    both: tuple[Scored, Scored],
) -> None:
    full, half = both
    budget = round(0.3 * RECORDS)
    assert len(picks(full, budget) & picks(half, budget)) >= OVERLAP_BOUND * budget
    # One demonstration's whole help is ranked nearly the same.
    help_full, help_half = (np.maximum(each.utility, 0).sum(0) for each in both)
    ranks = [np.argsort(np.argsort(each)) for each in (help_full, help_half)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] >= 0.98
