"""A run whose one step kills itself, or sleeps; started by `test_killed_steps.py` as a program.

DELIFT_TEST_HOW=(kill | sleep) DELIFT_TEST_FOLDER=FOLDER python killed_step.py
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from assets.execution import execute_stage
from assets.outcome import Outcome
from delift_pipeline.core.manifest import Manifest

HOW, FOLDER = os.environ["DELIFT_TEST_HOW"], Path(os.environ["DELIFT_TEST_FOLDER"])


def step() -> Outcome:
    """Note this process; end as it is told to, but only the first time."""
    tries = len(list(FOLDER.glob("try-*")))
    (FOLDER / f"try-{tries}").write_text(str(os.getpid()))
    if tries == 0 and HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "sleep":
        time.sleep(600)
    return Outcome(Manifest(kind="report", content_hash="0" * 32), "reports/leaderboard")


@dg.asset(name="leaderboard", retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
def stand_in(context: dg.AssetExecutionContext) -> Iterator[Any]:
    """Execute the step as every asset does."""
    yield from execute_stage(context, step)


def make_job() -> dg.JobDefinition:
    """The job, as each of its processes makes it."""
    job = dg.define_asset_job("alone", [stand_in])
    executor = dg.multiprocess_executor
    made = dg.Definitions(assets=[stand_in], jobs=[job], executor=executor)
    return made.resolve_job_def("alone")


if __name__ == "__main__":
    with dg.DagsterInstance.from_config(str(FOLDER)) as instance:
        result = dg.execute_job(dg.reconstructable(make_job), instance=instance)
        sys.exit(0 if result.success else 1)
