"""Several processes that score one plan together, each on GPUs of its own.

They share the work by leases (`leases`), a batch of demonstrations at a time. The leases of one
that dies are free at once, since it is waited for here, and the others take its work over: nothing
is scored twice but what was in its unfinished shard.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.progress import Meter, Progress
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairPlan
from delift_pipeline.scoring.plan import write_plan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.wanted import Wanted
from delift_pipeline.scoring.worker import JOB, PLAN, RECORDS
from delift_pipeline.storage.atomic import write_json

MODULE = "delift_pipeline.scoring.worker"
POLL_SECONDS = 0.2
END_SECONDS = 10.0
REFUSED = 2
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class _Worker:
    """A process, what it said last, and its report once it is done."""

    number: int
    process: subprocess.Popen[str]
    log: Path
    report: dict[str, Any] | None = None
    listener: threading.Thread | None = None
    status: int | None = None

    @property
    def last_words(self) -> str:
        """The last line of its standard error, or how it ended."""
        lines = self.log.read_text("utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        status = self.status or 0
        if status < 0:
            return f"signal {-status}" + (f" after it said: {said[-1]}" if said else "")
        return (said or [f"exit status {status}"])[-1]

    @property
    def faults(self) -> list[str]:
        """Why it refused the job."""
        return [line for line in self.log.read_text("utf-8").split("\n") if line.strip()]


@dataclass
class _Tally:
    """What all workers have done so far; they are heard in threads of their own."""

    meter: Meter
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)
    said: set[str] = field(default_factory=set)

    def take(self, worker: _Worker, document: Mapping[str, Any]) -> None:
        with self.lock:
            if "report" in document:
                worker.report = document["report"]
            elif document.get("name") == "pairs":
                self.meter.advance(int(document["advance"]))
            elif "say" in document and document["say"] not in self.said:
                self.said.add(document["say"])
                self.progress.say(document["say"])


def score_together(
    options: ModelOptions,
    store: ScoreStore,
    frame: pl.DataFrame,
    records: EncodedRecords,
    plan: PairPlan,
    progress: Progress,
    *,
    baseline: bool = False,
) -> ScoreReport:
    """Score the missing pairs of a plan by `options.workers` processes.

    Args:
        options: The scorer; `threads` None shares the CPUs out.
        store: Where scores are kept.
        frame: All records the plan names (`RECORD_SCHEMA`).
        records: The same, encoded.
        plan: The wanted pairs.
        progress: Where progress is shown; a worker that ends early is named there.
        baseline: Whether the records are scored without a demonstration, too.

    Raises:
        Refused: there are too few GPUs, or the model cannot be used.
        DeliftError: workers ended early and pairs are missing.
    """
    started = time.monotonic()
    store.describe(fingerprint_of(options))
    wanted = Wanted(plan, records, store)
    shards, missing = len(store.shards), _missing(store, wanted)
    places = environments(options)
    with (
        tempfile.TemporaryDirectory(prefix="delift-workers-") as scratch,
        progress.track("pairs", missing, "pairs") as meter,
    ):
        folder = Path(scratch)
        _write_job(folder, options, store, frame, plan, baseline)
        with _started(folder, places) as workers:
            _watched(workers, _Tally(meter, progress))
        if left := _missing(store, wanted):
            raise _failure(workers, left)
        reports = [worker.report for worker in workers if worker.report]
    return ScoreReport(
        pairs_scored=missing,
        pairs_reused=wanted.pairs - missing,
        pairs_left_out=wanted.left_out,
        shards_found=shards,
        shards_written=len(store.shards) - shards,
        seconds=time.monotonic() - started,
        halved=sum(report["halved"] for report in reports),
        engine=next((report["engine"] for report in reports if report["engine"]), {}),
        cuts=records.cuts,
        unscorable=records.unscorable,
    )


def environments(options: ModelOptions) -> list[dict[str, str]]:
    """What the environment of each worker has of its own: its GPUs, or its share of the CPUs.

    Raises:
        Refused: there are not enough GPUs.
    """
    visible = [] if options.device == "cpu" else _gpus()
    if not visible:
        threads = options.threads or max((os.cpu_count() or 1) // options.workers, 1)
        own = {"OMP_NUM_THREADS": str(threads)}
        return [own | ({VISIBLE: ""} if options.device == "cpu" else {})] * options.workers
    spread = len(visible) // options.workers if options.device_map else 1
    each = options.tensor_parallel_size if options.engine == "vllm" else max(spread, 1)
    return [{VISIBLE: gpus} for gpus in pinned(options.workers, visible, each)]


def pinned(workers: int, visible: Sequence[str], each: int) -> list[str]:
    """`each` of the visible GPUs for every worker, as CUDA_VISIBLE_DEVICES has them.

    Raises:
        Refused: there are not enough.
    """
    if workers * each > len(visible):
        needed = f"{workers} workers of {each} GPUs each need {workers * each:,}"
        reason = f"{needed}, and {len(visible)} can be seen here; give fewer workers"
        raise Refused(Fault(reason, field="workers"))
    return [",".join(visible[at * each : (at + 1) * each]) for at in range(workers)]


def _gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def _missing(store: ScoreStore, wanted: Wanted) -> int:
    store.refresh()
    return sum(
        len(store.index.missing(number, wanted.targets(number))) for number in wanted.demonstrations
    )


def _write_job(
    folder: Path,
    options: ModelOptions,
    store: ScoreStore,
    frame: pl.DataFrame,
    plan: PairPlan,
    baseline: bool,
) -> None:
    frame.select("record_id", "instruction", "input", "output").write_ipc(folder / RECORDS)
    write_plan(folder / PLAN, plan)
    alone = options.model_copy(update={"workers": 1})
    settings = alone.model_dump(mode="json")
    job = {"options": settings, "store": str(store.folder.resolve()), "baseline": baseline}
    write_json(folder / JOB, job)


@contextmanager
def _started(folder: Path, places: Sequence[Mapping[str, str]]) -> Iterator[list[_Worker]]:
    """The workers, none of which outlives the context."""
    workers: list[_Worker] = []
    try:
        for number, place in enumerate(places):
            workers.append(_launched(number, folder, place))
        yield workers
    finally:
        for worker in workers:
            _ended(worker)


def _launched(number: int, folder: Path, place: Mapping[str, str]) -> _Worker:
    log = folder / f"worker-{number}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            # -P: a file in the current folder may be named as a module.
            [sys.executable, "-P", "-m", MODULE, str(folder)],
            env={**os.environ, **place},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # An interrupt at the terminal is this process's to handle.
            start_new_session=True,
        )
    return _Worker(number, process, log)


def _ended(worker: _Worker) -> None:
    process = worker.process
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _watched(workers: list[_Worker], tally: _Tally) -> None:
    """Wait for all workers; say which end early."""
    for worker in workers:
        worker.listener = threading.Thread(target=_listen, args=(worker, tally), daemon=True)
        worker.listener.start()
    running = list(workers)
    while running:
        time.sleep(POLL_SECONDS)
        # Asking also waits for a dead process, without which its leases would seem to be held.
        for worker in running:
            worker.status = worker.process.poll()
        for worker in (one for one in running if one.status):
            line = f"worker {worker.number + 1} of {len(workers)} ended early: {worker.last_words}"
            tally.progress.say(line)
        running = [worker for worker in running if worker.status is None]
    for worker in workers:
        assert worker.listener is not None
        worker.listener.join()


def _listen(worker: _Worker, tally: _Tally) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        tally.take(worker, json.loads(line))


def _failure(workers: Sequence[_Worker], left: int) -> DeliftError:
    early = [worker for worker in workers if worker.status]
    for worker in early:
        if worker.status == REFUSED:
            return Refused(*worker.faults)
    words = early[-1].last_words if early else "nothing"
    return DeliftError(
        f"{len(early)} of {len(workers)} workers ended early and {left:,} pairs are not scored "
        f"(the last said: {words}); run again to go on where they stopped"
    )
