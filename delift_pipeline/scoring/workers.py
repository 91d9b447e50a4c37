"""Score one plan with several worker processes, each on GPUs of its own.

Workers share the work by leases (`Leases`), some demonstrations at a time. If a worker dies, its
leases are free at once and the others take over its work; only the scores of its unfinished shard
are computed again.

A worker is `python -m delift_pipeline.scoring.workers FOLDER`. The folder has the records, the plan
and `job.json`. Standard output has one JSON document per line (`advance`, `say`, and `report` at
the end), standard error has everything else. A worker ends when its standard input closes, so it
never outlives the process that started it. Its exit status is 0 when done, 1 if it failed, and 2 if
the job was refused.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_json
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.progress import Meter, Progress
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairPlan, read_plan, write_plan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.store import PairRequest, ScoreStore

MODULE = "delift_pipeline.scoring.workers"
STOP_SECONDS = 10.0
FAILED, REFUSED, ORPHANED = 1, 2, 3
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
JOB, RECORDS, PLAN = "job.json", "records.arrow", "plan"


class _Channel:
    """Sends progress to the process that started this worker."""

    def __init__(self) -> None:
        # What libraries print goes to standard error, so it never mixes with the documents.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **document: Any) -> None:
        """Send one JSON document."""
        self._out.write(json.dumps(document) + "\n")
        self._out.flush()

    def say(self, line: str) -> None:
        """Send one line for the user."""
        self.send(say=line)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """Yield a meter that sends its advances."""
        yield Meter(lambda amount: self.send(name=name, advance=amount))


def run_job(folder: Path, channel: _Channel) -> None:
    """Score the demonstrations that this worker can lease, until no pair of the job is missing."""
    from delift_pipeline.scoring.model import load_scorer
    from delift_pipeline.scoring.run import score_baseline, score_pairs

    job = json.loads((folder / JOB).read_text("utf-8"))
    loaded = load_scorer(ModelOptions.model_validate(job["options"]))
    records = loaded.encoder.encode(pl.read_ipc(folder / RECORDS, memory_map=False))
    store, plan = ScoreStore(Path(job["store"])), read_plan(folder / PLAN)
    report = score_pairs(loaded, store, records, plan, channel)
    if job["baseline"]:
        score_baseline(loaded, store, records, channel, support=True)
    channel.send(report={"halved": report.halved, "engine": report.engine})


def main() -> int:
    """Run the job in the folder that the only argument names, and return the exit status."""

    def exit_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(ORPHANED)

    Thread(target=exit_with_parent, daemon=True).start()
    try:
        run_job(Path(sys.argv[1]), _Channel())
    except DeliftError as error:
        print(error, file=sys.stderr)
        return REFUSED if isinstance(error, InputError) else FAILED
    except Exception:
        # No exception may reach the interpreter: its shutdown would wait for the thread above.
        traceback.print_exc()
        return FAILED
    return 0


def score_with_workers(
    options: ModelOptions,
    store: ScoreStore,
    frame: pl.DataFrame,
    records: EncodedRecords,
    plan: PairPlan,
    progress: Progress,
    *,
    baseline: bool = False,
) -> ScoreReport:
    """Score the missing pairs of a plan with `options.workers` processes.

    If `threads` is None, the processes share the CPUs. `frame` and `records` have all records of
    the plan; with `baseline` they are also scored without a demonstration.

    Raises:
        InputError: there are too few GPUs, or the model cannot be used.
        DeliftError: workers ended early and pairs are missing.
    """
    started = time.monotonic()
    store.ensure_manifest(fingerprint_of(options))
    request = PairRequest(plan, records, store)
    shards_before, missing = len(store.shards), sum(request.missing().values())
    environments = worker_environments(options)
    lock, messages, reports = Lock(), set[str](), list[dict[str, Any]]()
    with (
        tempfile.TemporaryDirectory(prefix="delift-workers-") as scratch,
        progress.track("pairs", missing, "pairs") as meter,
        ExitStack() as running,
    ):

        def receive(document: dict[str, Any]) -> None:
            # Each worker has a thread that calls this.
            with lock:
                if "report" in document:
                    reports.append(document["report"])
                elif document.get("name") == "pairs":
                    meter.advance(int(document["advance"]))
                elif "say" in document and document["say"] not in messages:
                    messages.add(document["say"])
                    progress.say(document["say"])

        folder = Path(scratch)
        frame.select("record_id", "instruction", "input", "output").write_ipc(folder / RECORDS)
        write_plan(folder / PLAN, plan)
        settings = options.model_copy(update={"workers": 1}).model_dump(mode="json")
        job = {"options": settings, "store": str(store.folder.resolve()), "baseline": baseline}
        write_json(folder / JOB, job)
        workers = list[Worker]()
        for number, variables in enumerate(environments, 1):
            name = f"{number} of {len(environments)}"
            workers.append(running.enter_context(Worker(name, folder, variables)))
        receivers = [worker.forward_output for worker in workers]
        threads = [Thread(target=run, args=(receive,), daemon=True) for run in receivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.refresh()
        ids = records.ids if baseline else ()
        alone = PairRequest(PairPlan(()), records, store, ids, support=True)
        if left := sum(request.missing().values()) + sum(alone.missing().values()):
            raise _failure(workers, left)
    return ScoreReport(
        pairs_scored=missing,
        pairs_reused=request.pairs - missing,
        pairs_left_out=request.left_out,
        shards_before=shards_before,
        shards_written=len(store.shards) - shards_before,
        seconds=time.monotonic() - started,
        halved=sum(report["halved"] for report in reports),
        engine=next((report["engine"] for report in reports if report["engine"]), {}),
        cuts=records.cuts,
        unscorable=records.unscorable,
    )


def worker_environments(options: ModelOptions) -> list[dict[str, str]]:
    """Return environment variables for each worker: its GPUs, or its share of the CPUs.

    Raises:
        InputError: there are not enough GPUs.
    """
    visible: list[str] = []
    if options.device != "cpu":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        listed = [name for name in os.environ.get(VISIBLE_GPUS, "").split(",") if name.strip()]
        visible = listed[:count] if listed else [str(number) for number in range(count)]
    if not visible:
        threads = options.threads or max((os.cpu_count() or 1) // options.workers, 1)
        variables = {"OMP_NUM_THREADS": str(threads)}
        if options.device == "cpu":
            variables[VISIBLE_GPUS] = ""
        return [variables] * options.workers
    if options.engine == "vllm":
        gpus_each = options.tensor_parallel_size
    else:
        gpus_each = max(len(visible) // options.workers, 1) if options.device_map else 1
    return [{VISIBLE_GPUS: gpus} for gpus in assign_gpus(options.workers, visible, gpus_each)]


def assign_gpus(workers: int, visible: Sequence[str], gpus_each: int) -> list[str]:
    """Return values of CUDA_VISIBLE_DEVICES that give each worker `gpus_each` of the visible GPUs.

    Raises:
        InputError: there are not enough GPUs.
    """
    if workers * gpus_each > len(visible):
        needed = f"{workers} workers of {gpus_each} GPUs each need {workers * gpus_each:,}"
        reason = f"{needed}, but only {len(visible)} are visible here; use fewer workers"
        raise InputError(reason, field="workers")
    starts = range(0, workers * gpus_each, gpus_each)
    return [",".join(visible[start : start + gpus_each]) for start in starts]


class Worker:
    """A worker process; the context manager ends it.

    Attributes:
        name: Its number and how many workers there are, such as `1 of 2`.
        status: Its exit status once it has ended.
    """

    def __init__(self, name: str, folder: Path, variables: Mapping[str, str]) -> None:
        """Start a process on the job in a folder, with additional environment variables."""
        self.name, self.status = name, 0
        self._log = folder / f"worker-{name.split()[0]}.log"
        with self._log.open("wb") as errors:
            self.process = subprocess.Popen(
                # -P: a file in the current folder must not hide a module of the same name.
                [sys.executable, "-P", "-m", MODULE, str(folder)],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C at the terminal goes to this process alone, which ends the workers.
                start_new_session=True,
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        # While its standard input is open, the worker knows that it is still needed.
        with self.process as process:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    @property
    def errors(self) -> list[str]:
        """The lines of its standard error that are not empty."""
        lines = map(str.strip, self._log.read_text("utf-8", errors="replace").split("\n"))
        return [line for line in lines if line]

    @property
    def last_error(self) -> str:
        """The last line of its standard error, or how the process ended."""
        lines = self.errors
        if self.status < 0:
            return f"signal {-self.status}" + (f" after the message: {lines[-1]}" if lines else "")
        return (lines or [f"exit status {self.status}"])[-1]

    def forward_output(self, receive: Callable[[dict[str, Any]], None]) -> None:
        """Pass on every document of standard output, and report if the worker fails."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # A worker that is killed may leave half a line.
            if line.endswith("\n"):
                receive(json.loads(line))
        self.status = self.process.wait()
        if self.status:
            receive({"say": f"worker {self.name} ended early: {self.last_error}"})


def _failure(workers: Sequence[Worker], left: int) -> DeliftError:
    early = [worker for worker in workers if worker.status]
    if refused := next((worker for worker in early if worker.status == REFUSED), None):
        return InputError(*refused.errors)
    words = early[-1].last_error if early else "none"
    return DeliftError(
        f"{len(early)} of {len(workers)} workers ended early and {left:,} pairs are not scored "
        f"(last message: {words}); run again to continue where they stopped"
    )


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The thread that reads standard input still waits and would delay a normal exit.
    os._exit(status)
