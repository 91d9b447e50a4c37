"""Records of the demo world: pools, held-out sets and target sets.

A pool is skewed, redundant and wrong in part, with the truth kept apart from it. One of up to about
800 records on ten tasks is possible; beyond that the frequent facts run out of wordings. All
answers of held-out and target sets are right.

A prompt (instruction and input) belongs to exactly one part by its own hash: some prompts occur in
pools only, some in held-out sets only, some in target sets only. So no pool ever shares a prompt
with a held-out or a target set, whatever their seeds.
"""

import hashlib
import itertools
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypedDict

from delift_pipeline.demo import rules
from delift_pipeline.demo.rules import Content
from delift_pipeline.demo.world import TASK_NAMES, Task, World, fact_key

TASK_SKEW, FACT_SKEW = 0.9, 1.2
"""Sizes fall as rank ** -skew."""
SMALLEST_TASK = 26
"""No task is smaller than the pool's size divided by this."""
SOURCE = "demo-world"
TRIES = 5000
"""Draws of a wording before its fact counts as used up."""

Part = Literal["pool", "heldout", "target"]
POOL_EIGHTHS, HELDOUT_EIGHTHS = 5, 2
"""Of eight prompts, how many belong to pools and to held-out sets; the rest to target sets."""
Prompt = tuple[str, str]


class Record(TypedDict):
    """One record as it stands in a file; selectors see nothing else."""

    id: str
    instruction: str
    input: str
    output: str
    source: str
    task: str


class Truth(TypedDict):
    """What is known about one record and shown to no selector."""

    id: str
    task: str
    fact: str
    correct: bool
    right_output: str


def part_of(instruction: str, input_text: str) -> Part:
    """The one part in which a prompt may occur."""
    digest = hashlib.blake2b(f"{instruction}\n{input_text}".encode(), digest_size=8).digest()
    eighth = digest[0] % 8
    if eighth < POOL_EIGHTHS:
        return "pool"
    return "heldout" if eighth < POOL_EIGHTHS + HELDOUT_EIGHTHS else "target"


def draw_record(
    task: Task, content: Content, part: Part, number: int, seen: set[Prompt], rng: random.Random
) -> Record:
    """Draw a right record of a fact in a wording that belongs to a part and was not seen.

    Its id is the part and the number, and its prompt is added to those seen.

    Raises:
        ValueError: The wordings of the fact are used up.
    """
    for _ in range(TRIES):
        prompt = rules.draw_instruction(task.rule, rng), rules.draw_input(task.rule, content, rng)
        if prompt not in seen and part_of(*prompt) == part:
            break
    else:
        raise ValueError(f"no {part} wording of {fact_key(task, content)!r} is left: ask for fewer")
    seen.add(prompt)
    return Record(
        id=f"{part}-{number:05d}",
        instruction=prompt[0],
        input=prompt[1],
        output=rules.answer(task.rule, content),
        source=SOURCE,
        task=task.name,
    )


def prompts_of(records: Iterable[Record]) -> set[Prompt]:
    """The distinct prompts of records."""
    return {(record["instruction"], record["input"]) for record in records}


def task_sizes(tasks: Sequence[Task], size: int) -> dict[str, int]:
    """How many of `size` records each task gets; sums to `size`.

    Raises:
        ValueError: There are fewer than two records a task.
    """
    if size < 2 * len(tasks):
        raise ValueError(f"{size} records are too few for {len(tasks)} tasks: at least two a task")
    shares = _rank_weights(len(tasks), TASK_SKEW)
    least = max(2, size // SMALLEST_TASK)
    sizes = [max(least, round(size * share / sum(shares))) for share in shares]
    sizes[0] += size - sum(sizes)
    if sizes[0] < least:
        sizes = [size // len(tasks) + (index < size % len(tasks)) for index in range(len(tasks))]
    return {task.name: count for task, count in zip(tasks, sizes, strict=True)}


def _rank_weights(count: int, power: float) -> list[float]:
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
        seed: Of all draws.
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
    ranked = [task for task in world.tasks if task in chosen]
    plan: list[tuple[Task, Content]] = []
    for task, count in zip(ranked, task_sizes(ranked, size).values(), strict=True):
        used = task.facts[: max(1, count // 2)]
        extra = rng.choices(used, _rank_weights(len(used), FACT_SKEW), k=count - 2 * len(used))
        plan += [(task, content) for content in (*used, *used, *extra)]
    rng.shuffle(plan)
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


def wrong_answer(world: World, task: Task, content: Content, rng: random.Random) -> str:
    """What another rule of the task's family would answer; its first word differs for codes."""
    rule, right = task.rule, rules.answer(task.rule, content)
    while True:
        if task.is_closed:
            other = replace(rule, codes=rules.draw_map(list(rule.codes), world.codes, rng))
        else:
            other = rules.draw_rule(rule.family, rule.mode, rng)
        if rule.family == "who":
            other = replace(other, ending=rng.choice(world.codes))
        wrong = rules.answer(other, content)
        if (wrong.split()[0] != right.split()[0]) if task.is_closed else wrong != right:
            return wrong


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
        seed: Of all draws.
        tasks: Names of the tasks; all by default.
        facts: Keys of the facts that may be asked of tasks that are all facts; give those of the
            pool's truths, so that nothing is asked that the pool does not hold. All by default.
        first: Number of the first id.

    Raises:
        ValueError: A task is unknown, has none of the facts, or has too few wordings.
    """
    for name in tasks or ():
        world.task(name)  # refuses an unknown one
    chosen = [name for name in TASK_NAMES if tasks is None or name in tasks]
    names = [name for name in chosen for _ in range(per_task)]
    return _draw_right_records(world, names, "heldout", seed, facts, first)


def make_target(
    world: World, tasks: Sequence[str], rows: int, seed: int, *, facts: Collection[str] | None
) -> list[Record]:
    """Draw `rows` validation records of the named tasks in turn, for the task-specific stage.

    Args and errors are those of `make_heldout`.
    """
    names = sorted(tasks[index % len(tasks)] for index in range(rows))
    return _draw_right_records(world, names, "target", seed, facts)


def _draw_right_records(
    world: World,
    names: Sequence[str],
    part: Part,
    seed: int,
    facts: Collection[str] | None,
    first: int = 0,
) -> list[Record]:
    rng, seen, rows = random.Random(f"{part} {world.seed} {seed}"), set[Prompt](), list[Record]()
    for number, task in enumerate(map(world.task, names), start=first):
        if task.is_closed:
            known = [c for c in task.facts if facts is None or fact_key(task, c) in facts]
            if not known:
                raise ValueError(f"none of the given facts is one of task {task.name}")
            content = rng.choice(known)
        else:
            content = rules.draw_content(task.rule, rng, world.forms)
        rows.append(draw_record(task, content, part, number, seen, rng))
    return rows
