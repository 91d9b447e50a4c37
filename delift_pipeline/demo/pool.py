"""Pools of the demo world: skewed, redundant and wrong in part, with the truth beside them.

A pool of up to about 800 records on ten tasks is possible; beyond that the frequent facts run out
of wordings.
"""

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import replace

from delift_pipeline.demo.drawing import Record, Truth, draw_record, prompts_of
from delift_pipeline.demo.rules import Content, answer, draw_map, draw_rule
from delift_pipeline.demo.world import TASK_NAMES, Task, World, fact_key

TASK_SKEW, FACT_SKEW = 0.9, 1.2
"""Sizes fall as rank ** -skew."""
SMALLEST_TASK = 26
"""No task is smaller than the pool's size divided by this."""


def task_sizes(tasks: Sequence[Task], size: int) -> dict[str, int]:
    """How many of `size` records each task gets; sums to `size`.

    Raises:
        ValueError: There are fewer than two records a task.
    """
    if size < 2 * len(tasks):
        raise ValueError(f"{size} records are too few for {len(tasks)} tasks: at least two a task")
    shares = _skewed(len(tasks), TASK_SKEW)
    least = max(2, size // SMALLEST_TASK)
    sizes = [max(least, round(size * share / sum(shares))) for share in shares]
    sizes[0] += size - sum(sizes)
    if sizes[0] < least:
        sizes = [size // len(tasks) + (index < size % len(tasks)) for index in range(len(tasks))]
    return {task.name: count for task, count in zip(tasks, sizes, strict=True)}


def _skewed(count: int, power: float) -> list[float]:
    return [(rank + 1) ** -power for rank in range(count)]


def make_pool(
    world: World,
    size: int,
    seed: int,
    wrong_share: float = 0.15,
    *,
    tasks: Collection[str] | None = None,
    after: Sequence[Record] = (),
) -> tuple[list[Record], list[Truth]]:
    """Draw a pool: skewed, redundant, and wrong in part.

    Every fact used occurs at least twice. The same arguments with another `wrong_share` give the
    same prompts.

    Args:
        world: The rules.
        size: Number of records; prompts are all distinct.
        seed: Of the pool.
        wrong_share: Share of wrong outputs; rounded to whole records, drawn at random from all.
        tasks: Names of the tasks to draw from; all by default.
        after: Records that this pool continues: no prompt of theirs is repeated, and the numbers of
            the ids go on from their count.

    Raises:
        ValueError: A task is unknown, the size is too small or too large, or the share is not
            within 0 and 1.
    """
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"wrong_share {wrong_share} is not within 0 and 1")
    rng = random.Random(f"pool {world.seed} {seed}")
    chosen = [world.task(name) for name in (TASK_NAMES if tasks is None else tasks)]
    plan = _draw_plan([task for task in world.tasks if task in chosen], size, rng)
    seen = prompts_of(after)
    records = [
        draw_record(task, content, "pool", number, seen, rng)
        for number, (task, content) in enumerate(plan, start=len(after))
    ]
    truths = [
        Truth(id=r["id"], task=r["task"], fact=fact, correct=True, right_output=r["output"])
        for r, fact in zip(records, itertools.starmap(fact_key, plan), strict=True)
    ]
    rng = random.Random(f"wrong {world.seed} {seed}")
    for index in rng.sample(range(size), round(wrong_share * size)):
        records[index]["output"] = wrong_answer(world, *plan[index], rng)
        truths[index]["correct"] = False
    return records, truths


def _draw_plan(tasks: Sequence[Task], size: int, rng: random.Random) -> list[tuple[Task, Content]]:
    """The task and fact of each record, in random order."""
    plan: list[tuple[Task, Content]] = []
    for task, count in zip(tasks, task_sizes(tasks, size).values(), strict=True):
        used = task.facts[: max(1, count // 2)]
        extra = rng.choices(used, _skewed(len(used), FACT_SKEW), k=count - 2 * len(used))
        plan += [(task, content) for content in (*used, *used, *extra)]
    rng.shuffle(plan)
    return plan


def wrong_answer(world: World, task: Task, content: Content, rng: random.Random) -> str:
    """What another rule of the task's family would answer; its first word differs for codes."""
    rule, right = task.rule, answer(task.rule, content)
    while True:
        if task.closed:
            other = replace(rule, codes=draw_map(list(rule.codes), world.codes, rng))
        else:
            other = draw_rule(rule.family, rule.mode, rng)
        if rule.family == "who":
            other = replace(other, ending=rng.choice(world.codes))
        given = answer(other, content)
        same = given.split()[0] == right.split()[0] if task.closed else given == right
        if not same:
            return given
