"""Executing a stage in an asset: which failures are tried again."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from assets.checks import severity
from assets.execution import execute_stage
from assets.outcome import Outcome
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.graph import build_assets
from delift_pipeline.orchestration.jobs import retry_policy
from delift_pipeline.stages.arms import AutomationOptions, load_arms


def tries(step: Callable[[], Outcome]) -> tuple[bool, int, str]:
    """Return whether a step succeeded in an asset, how often it was tried, and its last message."""
    count = 0

    def counted() -> Outcome:
        nonlocal count
        count += 1
        return step()

    @dg.asset(name="leaderboard", retry_policy=dg.RetryPolicy(max_retries=2, delay=0))
    def stand_in(context: dg.AssetExecutionContext) -> Iterator[Any]:
        yield from execute_stage(context, counted)

    result = dg.materialize([stand_in], raise_on_error=False)
    said = ""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data.user_failure_data
            said = (data.description or "") if data else ""
    return result.success, count, said


def failing(*errors: BaseException) -> Callable[[], Outcome]:
    """A step that fails in these ways, one after the other, and then works."""
    left = list(errors)

    def step() -> Outcome:
        if left:
            raise left.pop(0)
        return Outcome(Manifest(kind="report", content_hash="0" * 32), "reports/leaderboard")

    return step


def test_a_read_that_failed_is_tried_again_until_it_works() -> None:
    error = OSError(errno.EIO, "input/output error")
    assert tries(failing(error, error)) == (True, 3, "")


def test_memory_that_runs_out_every_time_ends_after_the_last_retry() -> None:
    success, count, said = tries(failing(*(MemoryError("no memory") for _ in range(5))))
    assert (success, count) == (False, 3)
    assert "no memory" in said


@pytest.mark.parametrize(
    "error",
    [InputError("the file is faulty"), DeliftError("the scores are damaged"), KeyError("a bug")],
)
def test_what_would_fail_again_is_not_tried_again(error: Exception) -> None:
    success, count, said = tries(failing(error))
    assert (success, count) == (False, 1)
    assert str(error) in said


def test_a_full_disk_is_said_in_words() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "reports/.tmp-1-leaderboard")
    assert "disk is full" in tries(failing(error))[2]


def test_an_unexpected_error_is_one_bounded_sentence() -> None:
    said = tries(failing(KeyError("line\n" * 1_000)))[2]
    assert "KeyError" in said and "--debug" in said
    assert len(said.splitlines()) == 1 and len(said) < 1_000


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), DagsterExecutionInterruptedError()])
def test_an_interrupted_step_is_not_tried_again(interrupt: BaseException) -> None:
    assert tries(failing(interrupt)) == (False, 1, "the step was interrupted")


def test_every_asset_is_tried_again_in_the_same_way() -> None:
    policy = retry_policy(AutomationOptions(retries=7))
    assert policy.max_retries == 7
    arms = replace(load_arms(), automation=AutomationOptions(retries=7))
    assert {asset.op.retry_policy for asset in build_assets(arms)} == {policy}


def test_only_broken_data_is_an_error() -> None:
    assert severity("raw_dataset", "schema") == dg.AssetCheckSeverity.ERROR
    assert severity("raw_dataset", "inbox") == dg.AssetCheckSeverity.WARN
