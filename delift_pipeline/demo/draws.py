"""Draw records of the demo world: pools, held-out sets and target sets.

A pool is skewed, redundant and partly wrong; the right answers are stored apart from it. It can
have up to about 800 records on ten tasks; beyond that the frequent facts run out of wordings. All
answers of held-out and target sets are right.

A prompt (instruction and input) belongs to exactly one part, which is decided by its hash: it can
occur only in pools, only in held-out sets, or only in target sets. So a pool never shares a prompt
with a held-out or a target set, whatever the seeds.
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
"""Sizes of tasks and facts are proportional to rank ** -skew."""
SMALLEST_TASK = 26
"""The smallest task has at least the pool's size divided by this number."""
SOURCE = "demo-world"
TRIES = 5000
"""How many wordings of a fact are drawn before they count as used up."""

Part = Literal["pool", "heldout", "target"]
POOL_EIGHTHS, HELDOUT_EIGHTHS = 5, 2
"""How many of eight prompts belong to pools and to held-out sets; the rest are for target sets."""
Prompt = tuple[str, str]


class Record(TypedDict):
    """One record of an input file; selectors see nothing else."""

    id: str
    instruction: str
    input: str
    output: str
    source: str
    task: str


class Truth(TypedDict):
    """Facts about one record that no selector sees."""

    id: str
    task: str
    fact: str
    correct: bool
    right_output: str


def part_of(instruction: str, input_text: str) -> Part:
    """Return the one part in which a prompt may occur."""
    digest = hashlib.blake2b(f"{instruction}\n{input_text}".encode(), digest_size=8).digest()
    eighth = digest[0] % 8
    if eighth < POOL_EIGHTHS:
        return "pool"
    return "heldout" if eighth < POOL_EIGHTHS + HELDOUT_EIGHTHS else "target"


def draw_record(
    task: Task, content: Content, part: Part, number: int, seen: set[Prompt], rng: random.Random
) -> Record:
    """Draw a right record of a fact, in a wording that belongs to `part` and is not in `seen`.

    The record's id is the part and the number. The prompt is added to `seen`.

    Raises:
        ValueError: all wordings of the fact are used.
    """
    for _ in range(TRIES):
        prompt = rules.draw_instruction(task.rule, rng), rules.draw_input(task.rule, content, rng)
        if prompt not in seen and part_of(*prompt) == part:
            break
    else:
        fact = fact_key(task, content)
        raise ValueError(f"all {part} wordings of {fact!r} are used. Ask for fewer records")
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
    """Return the distinct prompts of records."""
    return {(record["instruction"], record["input"]) for record in records}


def task_sizes(tasks: Sequence[Task], size: int) -> dict[str, int]:
    """Return how many of `size` records each task gets; the sum is `size`.

    Raises:
        ValueError: there are fewer than two records per task.
    """
    if size < 2 * len(tasks):
        reason = f"{size} records are too few for {len(tasks)} tasks. Ask for at least two per task"
        raise ValueError(reason)
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
    """Draw a pool: skewed, redundant, and partly wrong.

    Every fact in it occurs at least twice. With another `wrong_share` the prompts stay the same.

    Args:
        world: The world with its rules.
        size: Number of records; all prompts are distinct.
        seed: The seed of all draws.
        wrong_share: Share of wrong outputs, rounded to whole records, which are drawn at random.
        tasks: Names of the tasks to draw from; all by default.
        after: Records that this pool continues: their prompts are not repeated, and the numbers in
            the ids start at their count.

    Raises:
        ValueError: a task is unknown, the size is too small or too large, or the share is not
            within 0 and 1.
    """
    if not 0 <= wrong_share <= 1:
        raise ValueError(f"wrong_share is {wrong_share}. Use a share within 0 and 1")
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
    """Return the answer of another rule of the family; if it is codes, its first word differs."""
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
    """Draw a balanced held-out set: known facts in new wordings, and rules on new inputs.

    Args:
        world: The world with its rules.
        per_task: Records per task.
        seed: The seed of all draws.
        tasks: Names of the tasks; all by default.
        facts: Keys of the facts that closed tasks may ask. Give the facts of the pool, so no record
            asks for a fact that the pool does not have. All by default.
        first: Number of the first id.

    Raises:
        ValueError: a task is unknown, has none of the facts, or has too few wordings.
    """
    for name in tasks or ():
        world.task(name)  # raises for an unknown name
    chosen = [name for name in TASK_NAMES if tasks is None or name in tasks]
    names = [name for name in chosen for _ in range(per_task)]
    return _draw_right_records(world, names, "heldout", seed, facts, first)


def make_target(
    world: World, tasks: Sequence[str], rows: int, seed: int, *, facts: Collection[str] | None
) -> list[Record]:
    """Draw `rows` validation records, spread evenly over the tasks, for the task-specific stage.

    Arguments and errors are those of `make_heldout`.
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
                raise ValueError(f"task {task.name} has none of the facts. Give some of its facts")
            content = rng.choice(known)
        else:
            content = rules.draw_content(task.rule, rng, world.forms)
        rows.append(draw_record(task, content, part, number, seen, rng))
    return rows
