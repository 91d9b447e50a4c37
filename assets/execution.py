"""Run a stage of the library inside an asset, and convert its outcome to Dagster's results."""

import atexit
import base64
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import dagster as dg
import polars as pl

from assets.checks import BLOCKING, WARNING, severity
from assets.columns import column_lineage, row_count
from assets.outcome import Outcome
from delift_pipeline.core.errors import (
    DeliftError,
    InputError,
    may_pass,
    system_error,
    system_sentence,
    unexpected_sentence,
)
from delift_pipeline.core.progress import BarProgress, LineProgress, Progress
from delift_pipeline.core.signals import SignalWatch
from delift_pipeline.orchestration.dagster_internals import (
    INTERRUPTS,
    PoolClaims,
    close_run,
    process_of,
)

BAR_VARIABLE = "DELIFT_PROGRESS_BAR"
REFUSAL_CHECK = "schema"
"""The check of `raw_dataset` that fails if a dataset is refused."""


GPU_POOL = "gpu"


@contextmanager
def gpu_pool_claim(context: dg.AssetExecutionContext) -> Iterator[Callable[[], None]]:
    """Yield a function that waits for a slot in the gpu pool. The slot is freed at the end.

    A pool that an asset names is claimed for every partition, so arms that read only stored scores
    would wait behind hours of scoring. Here a step claims a slot only just before it loads weights,
    in the same storage as Dagster's executors. The slot of a killed process is freed with its run.
    """
    step = context.get_step_execution_context().step.key
    with PoolClaims(context.instance, context.run) as claims:

        @cache
        def claim() -> None:
            if not claims.claim(GPU_POOL, step):
                context.log.info(f"the step waits for a slot in the pool {GPU_POOL}")
                while not claims.claim(GPU_POOL, step):
                    pass

        try:
            yield claim
        finally:
            claims.free_step(step)


def progress(context: dg.AssetExecutionContext) -> Progress:
    """Return progress as log lines every half minute, or as a bar in a user's terminal."""
    if os.environ.get(BAR_VARIABLE) and sys.stderr.isatty():
        return BarProgress()
    return LineProgress(context.log.info)


def execute_stage(
    context: dg.AssetExecutionContext, step: Callable[[], Outcome]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Run a stage of the library and yield its outcome as Dagster's results.

    Raises:
        dagster.Failure: the step failed or refused its input. It is retried only if another try
            can help: memory ran out, or a read or a connection failed.
    """
    name = context.asset_key.path[-1]
    started = time.monotonic()
    try:
        with _end_on_signal(context):
            outcome = step()
    except INTERRUPTS as interrupt:
        # Under a retry policy Dagster would try an interrupted step again.
        raise dg.Failure("the step was interrupted", allow_retries=False) from interrupt
    except InputError as refused:
        yield from _refusal_checks(name, refused)
        raise dg.Failure(str(refused), _fault_metadata(refused), allow_retries=False) from refused
    except Exception as error:
        failed = None if isinstance(error, DeliftError) else system_error(error)
        message = str(error) if isinstance(error, DeliftError) else unexpected_sentence(error)
        message = system_sentence(failed) if failed else message
        raise dg.Failure(message, allow_retries=may_pass(error)) from error
    seconds = round(time.monotonic() - started, 3)
    context.log.info(f"{name}: {outcome.path} is {'reused' if outcome.reused else 'new'}")
    manifest = outcome.manifest
    about = {"fingerprint": manifest.fingerprint, "git_commit": manifest.git_commit}
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(manifest.content_hash),
        metadata={
            "path": outcome.path,
            "reused": outcome.reused,
            "seconds": seconds,
            "parents": manifest.parents,
            **{title: value for title, value in about.items() if value},
            **outcome.facts,
            **{title: dg.MetadataValue.url(url) for title, url in outcome.links.items()},
            **{title: _table(frame) for title, frame in outcome.tables.items() if frame.height},
            **{title: _image(title, png) for title, png in outcome.plots.items()},
            **row_count(name, manifest.counts, partitioned=name != "leaderboard"),
            **column_lineage(name),
        },
        check_results=[
            dg.AssetCheckResult(
                check_name=check_name,
                passed=check.passed,
                severity=severity(name, check_name),
                description=check.note,
                metadata=dict(check.facts),
            )
            for check_name, check in outcome.checks.items()
        ],
    )


@contextmanager
def _end_on_signal(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Make a process that a server or a run started exit when its run is over.

    It exits when its parent is killed, because the next run would use the same device at the same
    time. It also exits if the step is still working some seconds after an interrupt, because
    Dagster gives its slot in the pool to another step.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        yield
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    def record_end() -> None:
        run = context.instance.get_run_by_id(context.run_id)
        process = process_of(context.instance, run) if run else None
        # If the step has a process of its own, the run's process records the end.
        if run and process and process.pid == os.getpid():
            close_run(context.instance, run)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
    with SignalWatch(before_exit=record_end):
        try:
            yield
        except INTERRUPTS:
            # Freeing all memory in order takes seconds, and the run and its slot would wait.
            atexit.register(os._exit, 1)
            raise


def _table(frame: pl.DataFrame) -> dg.MetadataValue:
    plain = frame.with_columns(pl.col(pl.List).list.join(", ")) if frame.width else frame
    rows = plain.iter_rows(named=True)
    filled = [{k: "" if v is None else v for k, v in row.items()} for row in rows]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in filled])


def _image(title: str, png: bytes) -> dg.MetadataValue:
    data = base64.b64encode(png).decode()
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{data})")


def _refusal_checks(name: str, refused: InputError) -> Iterator[dg.AssetCheckResult]:
    """Yield a failed check for a refused dataset, so that the web interface shows the faults.

    In a failed run, Dagster shows a check without a result as failed. So the other checks are
    warnings that say that they were not evaluated.
    """
    if name != "raw_dataset":
        return
    for check in (*BLOCKING[name], *WARNING[name]):
        own = check == REFUSAL_CHECK
        others = f"not evaluated, because the dataset was refused: see check {REFUSAL_CHECK}"
        yield dg.AssetCheckResult(
            check_name=check,
            passed=False,
            severity=dg.AssetCheckSeverity.ERROR if own else dg.AssetCheckSeverity.WARN,
            description=f"{len(refused.faults)} faults: nothing was stored" if own else others,
            metadata=_fault_metadata(refused) if own else {},
        )


def _fault_metadata(refused: InputError) -> dict[str, dg.MetadataValue]:
    first = "\n".join(f"- `{fault}`" for fault in refused.faults[:20])
    return {
        "faults": dg.MetadataValue.int(len(refused.faults)),
        "first faults": dg.MetadataValue.md(first),
    }
