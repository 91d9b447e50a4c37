"""A subset takes a place in the gpu pool only while its selector reads the model itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.execution import GPU_POOL
from delift_pipeline.core.home import Home
from delift_pipeline.orchestration import dagster_internals
from delift_pipeline.orchestration.partitions import add_versions

OTHER = ("another-run", "in_context_logprobs")
ARMS = """
defaults: {training: {preset: demo, steps: 3}}
arms:
  instruction_tuning.random: {}
  instruction_tuning.delift_trusted: {options: {embedder: model}}
"""


@pytest.fixture
def busy(ingested: Home, copied: Callable, tmp_path: Path) -> Iterator[Any]:
    """A world whose one place in the pool another run holds."""
    made = copied(ingested)
    made.write_arms(ARMS)
    made.succeed("score_version", "v1")
    # Dagster's storage in memory knows no pools.
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        add_versions(instance, made.home)
        instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
        assert instance.event_log_storage.claim_concurrency_slot(GPU_POOL, *OTHER).is_claimed
        yield replace(made, instance=instance)


def test_an_arm_without_a_model_does_not_wait(busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dagster_internals, "sleep", lambda _: pytest.fail("it waits"))
    run = busy.execute_asset("subset", "v1", "instruction_tuning.random")
    assert run.success, run.failure


def test_an_arm_that_reads_the_model_waits_for_its_place_and_gives_it_back(
    busy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, arm = busy.instance.event_log_storage, "instruction_tuning.delift_trusted"
    waited: list[list[str]] = []

    def sleep(_: float) -> None:
        pending = storage.get_concurrency_info(GPU_POOL).pending_steps
        waited.append([step.step_key for step in pending if step.run_id != OTHER[0]])
        storage.free_concurrency_slot_for_step(*OTHER)

    monkeypatch.setattr(dagster_internals, "sleep", sleep)
    run = busy.execute_asset("subset", "v1", arm)
    assert run.success, run.failure
    assert waited and waited[0] == ["subset"]
    assert storage.get_concurrency_info(GPU_POOL).active_slot_count == 0
    # What is found loads no weights and waits for nobody.
    assert storage.claim_concurrency_slot(GPU_POOL, *OTHER).is_claimed
    waited.clear()
    assert busy.execute_asset("subset", "v1", arm).facts("subset")["reused"]
    assert not waited
