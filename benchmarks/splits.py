"""Draw held-out sets as skewed as their pool, and split a pool for the continual stage."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from delift_pipeline.demo.draws import Prompt, Record, Truth, draw_record
from delift_pipeline.demo.rules import draw_content
from delift_pipeline.demo.world import World, fact_key

OLD_TASKS = 5
"""How many tasks the existing records of a continual split come from."""


def make_pool_heldout(world: World, rows: int, seed: int, truths: Sequence[Truth]) -> list[Record]:
    """Draw a held-out set in which tasks and facts are as frequent as in a pool.

    Its ids are those of a balanced set of the same size; use one or the other to evaluate a pool.
    """
    rng = random.Random(f"pool heldout {world.seed} {seed}")
    contents = {fact_key(task, content): content for task in world.tasks for content in task.facts}
    used_prompts: set[Prompt] = set()
    records = []
    for number in range(rows):
        fact = rng.choice(truths)
        task = world.task(fact["task"])
        content = contents[fact["fact"]]
        if not task.is_closed:
            content = draw_content(task.rule, rng, world.forms)
        records.append(draw_record(task, content, "heldout", number, used_prompts, rng))
    return records


@dataclass(frozen=True)
class ContinualSplit:
    """A pool, split into existing and new records.

    Attributes:
        old_tasks: The tasks of the existing records.
        existing: Half of the records of each old task, on which a model is trained first.
        new: All other records of the pool.
    """

    old_tasks: tuple[str, ...]
    existing: list[Record]
    new: list[Record]


def split_continual(records: Sequence[Record], seed: int) -> ContinualSplit:
    """Draw five tasks and take half of their records as existing; the rest is new.

    Raises:
        ValueError: the records have fewer than five tasks.
    """
    rng = random.Random(f"continual {seed}")
    names = sorted({record["task"] for record in records})
    if len(names) < OLD_TASKS:
        reason = f"a continual split needs {OLD_TASKS} tasks, but the records have {len(names)}"
        raise ValueError(f"{reason}. Draw a pool of more tasks")
    old = tuple(sorted(rng.sample(names, OLD_TASKS)))
    existing_ids: set[str] = set()
    for name in old:
        ids = [record["id"] for record in records if record["task"] == name]
        existing_ids.update(rng.sample(ids, len(ids) // 2))
    existing = [record for record in records if record["id"] in existing_ids]
    return ContinualSplit(old, existing, [r for r in records if r["id"] not in existing_ids])
