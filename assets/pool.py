"""A place in the gpu pool for a step that needs one only sometimes.

A pool named on an asset holds for all its partitions: arms that read scores and no model would
wait behind hours of scoring. Here a step claims its place when it is about to load weights, by the
storage that Dagster's own executors claim by, and gives it back when it ends. The place of a
process that was killed is freed with those of its run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from delift_pipeline.orchestration.dagster_internals import PoolClaims

GPU_POOL = "gpu"


@contextmanager
def gpu_place(context: dg.AssetExecutionContext) -> Iterator[Callable[[], None]]:
    """A function that waits for a place in the pool; the place is kept until the end."""
    step = context.get_step_execution_context().step.key
    with PoolClaims(context.instance, context.run) as places:
        held = [False]

        def claim() -> None:
            if held[0]:
                return
            if not places.claim(GPU_POOL, step):
                context.log.info(f"waiting for a place in the pool {GPU_POOL}")
                while not places.claim(GPU_POOL, step):
                    pass
            held[0] = True

        try:
            yield claim
        finally:
            places.free_step(step)
