"""Several processes score one plan: every pair once, the same scores, and a death is made good."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.progress import LineProgress
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.support import support_of
from delift_pipeline.scoring.workers import (
    MODULE,
    ORPHANED,
    Worker,
    assign_gpus,
    score_with_workers,
    worker_environments,
)

COUNT = 48


class Work:
    """A plan of every pair, scored by two workers."""

    def __init__(self, model: LoadedModel, frame: pl.DataFrame, folder: Path) -> None:
        self.model, self.frame = model, frame
        self.records = model.encoder.encode(frame)
        self.plan = PairPlan((PairBlock("self", self.records.ids, self.records.ids),))
        self.store, self.said = ScoreStore(folder), list[str]()

    def scored(self, **changes: Any) -> ScoreReport:
        settings = {"device": "cpu", "threads": 1, "workers": 2, **changes}
        options = self.model.options.model_copy(update=settings)
        say = LineProgress(self.said.append)
        return score_with_workers(
            options, self.store, self.frame, self.records, self.plan, say, baseline=True
        )

    def assert_as_one_process_would(self, folder: Path) -> None:
        alone, ids = ScoreStore(folder), self.records.ids
        score_baseline(self.model, alone, self.records, support=True)
        score_pairs(self.model, alone, self.records, self.plan)
        assert self.store.pair_count == COUNT * COUNT
        assert np.isfinite(support_of(self.store, ids)).all()
        self.store.refresh()
        for mine, theirs in (
            (self.store.baseline(ids), alone.baseline(ids)),
            (self.store.answer_sums(ids), alone.answer_sums(ids)),
            (self.store.read_block(ids, ids), alone.read_block(ids, ids)),
        ):
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.fixture
def work(llama: LoadedModel, made_up: Any, tmp_path: Path) -> Work:
    return Work(llama, made_up(COUNT), tmp_path / "scores")


def test_two_workers_score_every_pair_once_and_as_one_process_does(
    work: Work, tmp_path: Path
) -> None:
    report = work.scored()
    assert (report.pairs_scored, report.pairs_reused) == (COUNT * COUNT, 0)
    assert report.engine and report.shards_written >= 2
    assert any(f"{COUNT * COUNT:,}/{COUNT * COUNT:,} pairs done" in line for line in work.said)
    work.assert_as_one_process_would(tmp_path / "alone")


def kill_the_first_to_lease(folder: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 300
    while not killed and time.monotonic() < deadline:
        for lease in folder.glob("leases/[0-9]*.lease"):
            try:
                pid = int(json.loads(lease.read_text())["pid"])
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):
                continue
            killed.append(pid)
            return
        time.sleep(0.001)


@pytest.mark.slow
def test_the_work_of_a_worker_that_dies_is_taken_over(work: Work, tmp_path: Path) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_first_to_lease, args=(tmp_path / "scores", killed))
    killer.start()
    report = work.scored()
    killer.join()
    assert killed and report.pairs_scored == COUNT * COUNT
    (line,) = (line for line in work.said if "ended early" in line)
    assert "of 2 ended early: signal 9" in line
    work.assert_as_one_process_would(tmp_path / "alone")


@pytest.mark.slow
def test_a_model_that_no_worker_can_use_is_refused_in_its_own_words(
    work: Work, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    weights = tmp_path / "spoilt" / "model.safetensors"
    weights.parent.mkdir()
    for file in work.model.folder.iterdir():
        (weights.parent / file.name).write_bytes(file.read_bytes())
    tensors = load_file(weights)
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="weights are missing"):
        work.scored(model=str(weights.parent))
    assert sum("ended early" in line for line in work.said) == 2


@pytest.mark.slow
def test_when_all_workers_die_one_sentence_says_what_is_left(work: Work) -> None:
    ended = threading.Event()

    def kill_all() -> None:
        while not ended.is_set():
            kill_the_first_to_lease(work.store.folder, [])

    threading.Thread(target=kill_all, daemon=True).start()
    with pytest.raises(DeliftError, match=r"2 of 2 workers ended early .* run again") as failed:
        work.scored()
    ended.set()
    assert len(str(failed.value).splitlines()) == 1


def test_a_worker_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", MODULE, str(tmp_path)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == ORPHANED


def test_a_worker_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('my own script ran')")
    monkeypatch.chdir(tmp_path)
    with Worker("1 of 1", tmp_path, {}) as worker:
        worker.status = worker.process.wait(60)
        last = worker.last_error
    assert last.startswith("FileNotFoundError") and "job.json" in last


def test_an_error_in_a_worker_ends_it_with_a_traceback_and_status_1(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", MODULE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        last = process.stderr.read().strip().splitlines()[-1]
        assert process.wait() == 1
    assert last.startswith("FileNotFoundError") and "job.json" in last


def test_workers_get_gpus_of_their_own_and_too_few_are_refused() -> None:
    assert assign_gpus(2, ["0", "1", "2", "3"], 2) == ["0,1", "2,3"]
    assert assign_gpus(2, ["GPU-a", "GPU-b", "GPU-c"], 1) == ["GPU-a", "GPU-b"]
    with pytest.raises(InputError, match="workers: 3 workers of 2 GPUs each need 6"):
        assign_gpus(3, ["0", "1", "2", "3"], 2)


def test_workers_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    options = ModelOptions(model="demo", device="cpu", workers=2)
    expected = {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": ""}
    assert worker_environments(options) == [expected] * 2
    own = options.model_copy(update={"threads": 3})
    assert worker_environments(own)[0]["OMP_NUM_THREADS"] == "3"
