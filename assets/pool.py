"""A place in the gpu pool for a step that needs one only sometimes.

A pool named on an asset holds for all its partitions: arms that read scores and no model would
wait behind hours of scoring. Here a step claims its place when it is about to load weights, by the
storage that Dagster's own executors claim by, and gives it back when it ends. The place of a
process that was killed is freed by Dagster with those of its run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep

import dagster as dg
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

GPU_POOL = "gpu"
POLL_SECONDS = 1.0


@contextmanager
def gpu_place(context: dg.AssetExecutionContext) -> Iterator[Callable[[], None]]:
    """A function that waits for a place in the pool; the place is kept until the end."""
    step = context.get_step_execution_context().step.key
    with InstanceConcurrencyContext(context.instance, context.run) as places:
        held = [False]

        def claim() -> None:
            if not held[0]:
                _wait(context, lambda: places.claim(GPU_POOL, step))
                held[0] = True

        try:
            yield claim
        finally:
            places.free_step(step)


def _wait(context: dg.AssetExecutionContext, claimed: Callable[[], bool]) -> None:
    if claimed():
        return
    context.log.info(f"waiting for a place in the pool {GPU_POOL}")
    while not claimed():
        sleep(POLL_SECONDS)
