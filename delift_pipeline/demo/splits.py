"""Held-out sets and target sets; all answers are right."""

import random
from collections.abc import Collection, Sequence

from delift_pipeline.demo.drawing import Part, Prompt, Record, draw_record
from delift_pipeline.demo.rules import draw_content
from delift_pipeline.demo.world import TASK_NAMES, World, fact_key


def _draw_rows(
    world: World,
    names: Sequence[str],
    part: Part,
    facts: Collection[str] | None,
    rng: random.Random,
    first: int = 0,
) -> list[Record]:
    seen: set[Prompt] = set()
    rows = []
    for number, task in enumerate(map(world.task, names), start=first):
        if task.closed:
            known = [c for c in task.facts if facts is None or fact_key(task, c) in facts]
            if not known:
                raise ValueError(f"none of the given facts is one of task {task.name}")
            content = rng.choice(known)
        else:
            content = draw_content(task.rule, rng, world.forms)
        rows.append(draw_record(task, content, part, number, seen, rng))
    return rows


def make_heldout(
    world: World,
    per_task: int,
    seed: int,
    *,
    tasks: Collection[str] | None = None,
    facts: Collection[str] | None = None,
    first: int = 0,
) -> list[Record]:
    """Draw a balanced held-out set: facts in fresh wording, rules on fresh inputs.

    Args:
        world: The rules.
        per_task: Records a task.
        seed: Of the set.
        tasks: Names of the tasks; all by default.
        facts: Keys of the facts that may be asked of tasks that are all facts; give those of the
            pool's truths, so that nothing is asked that the pool does not hold. All by default.
        first: Number of the first id.

    Raises:
        ValueError: A task is unknown, has none of the facts, or has too few wordings.
    """
    chosen = [name for name in TASK_NAMES if tasks is None or name in tasks]
    for name in tasks or ():
        world.task(name)
    rng = random.Random(f"heldout {world.seed} {seed}")
    names = [name for name in chosen for _ in range(per_task)]
    return _draw_rows(world, names, "heldout", facts, rng, first)


def make_target(
    world: World, tasks: Sequence[str], rows: int, seed: int, *, facts: Collection[str] | None
) -> list[Record]:
    """Draw `rows` validation records of the named tasks in turn, for the task-specific stage.

    Args and errors are those of `make_heldout`.
    """
    rng = random.Random(f"target {world.seed} {seed}")
    names = sorted(tasks[index % len(tasks)] for index in range(rows))
    return _draw_rows(world, names, "target", facts, rng)
