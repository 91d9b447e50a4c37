"""Held-out sets as skewed as their pool, and the two halves of the continual stage."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from delift_pipeline.demo.draws import Prompt, Record, Truth, draw_record
from delift_pipeline.demo.rules import draw_content
from delift_pipeline.demo.world import World, fact_key

OLD_TASKS = 5
"""How many tasks the existing records of a continual split come from."""


def make_pool_heldout(world: World, rows: int, seed: int, truths: Sequence[Truth]) -> list[Record]:
    """Draw a held-out set with the tasks and facts as frequent as in a pool.

    Its ids are those of a balanced set of as many rows; the two are two ways to evaluate one pool.
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
    """A pool in two.

    Attributes:
        old_tasks: The tasks that the existing records come from.
        existing: Half of the records of each old task, as if trained on before.
        new: All other records of the pool.
    """

    old_tasks: tuple[str, ...]
    existing: list[Record]
    new: list[Record]


def split_continual(records: Sequence[Record], seed: int) -> ContinualSplit:
    """Draw five tasks and take half of their records as existing; the rest is new.

    Raises:
        ValueError: The records hold fewer than five tasks.
    """
    rng = random.Random(f"continual {seed}")
    names = sorted({record["task"] for record in records})
    if len(names) < OLD_TASKS:
        raise ValueError(f"a continual split needs {OLD_TASKS} tasks, not {len(names)}")
    old = tuple(sorted(rng.sample(names, OLD_TASKS)))
    existing_ids: set[str] = set()
    for name in old:
        ids = [record["id"] for record in records if record["task"] == name]
        existing_ids.update(rng.sample(ids, len(ids) // 2))
    existing = [record for record in records if record["id"] in existing_ids]
    return ContinualSplit(old, existing, [r for r in records if r["id"] not in existing_ids])
