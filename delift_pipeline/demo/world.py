"""The demo world: ten tasks with fixed rules that the base model has never seen.

It is synthetic, and we fixed it before we tried any selector on it. It is fair because:

- Every concept has two words, and records use either: equal facts can have different words.
- All tasks share one small set of concepts and codes: equal words do not mean an equal fact.
- The sizes of tasks and facts are skewed, so a random choice repeats the frequent ones.
- Most records repeat a fact in another wording, so much of a pool is redundant, and we know which
  part.
- A share of the outputs, drawn at random, is wrong, and we know which ones.

The mode word names the task, so a bag of words finds the task of most records: the world does
not put embeddings at a disadvantage. Its answers are short and exact, so results do not show how
long free text behaves.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from delift_pipeline.demo import rules
from delift_pipeline.demo import words as w
from delift_pipeline.demo.rules import Content, Rule

TASK_PLAN: tuple[tuple[str, int], ...] = (
    *(("lookup", 10), ("lookup", 8), ("translate", 8), ("translate", 6), ("group", 12)),
    *(("order", 8), ("order", 8), ("format", 8), ("shift", 8), ("who", 8)),
)
"""The family and the number of facts of each task."""

TASK_NAMES: tuple[str, ...] = tuple(
    f"{family}-{1 + sum(other == family for other, _ in TASK_PLAN[:index])}"
    for index, (family, _) in enumerate(TASK_PLAN)
)
"""The tasks of every world. Which of them are frequent differs from world to world."""

SHARED_CATEGORIES, PER_CATEGORY, SHARED_CODES, PER_GROUP = 4, 5, 20, 3


@dataclass(frozen=True)
class Task:
    """One task, such as `lookup-1`, and the rule of its right answers.

    The facts are the distinct inputs that a pool repeats, the most frequent first.
    """

    name: str
    rule: Rule
    facts: tuple[Content, ...]

    @property
    def is_closed(self) -> bool:
        """Whether held-out records use only the facts. Those of other tasks have any inputs."""
        return self.rule.family in rules.MAPPED


@dataclass(frozen=True)
class World:
    """Ten tasks, the most frequent first, with shared answer codes and concepts (plain words)."""

    seed: int
    tasks: tuple[Task, ...]
    concepts: tuple[str, ...]
    codes: tuple[str, ...]

    @property
    def forms(self) -> tuple[str, ...]:
        """Both words of every shared concept."""
        return (*self.concepts, *(w.SYNONYMS[concept] for concept in self.concepts))

    def task(self, name: str) -> Task:
        """Return the task with a name.

        Raises:
            ValueError: there is no such task.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"{name!r} is not a task. Choose from: {', '.join(sorted(TASK_NAMES))}")


def fact_key(task: Task, content: Content) -> str:
    """Return the name of a fact, such as `lookup-1: cat`."""
    return f"{task.name}: {' '.join(content)}"


def make_world(seed: int) -> World:
    """Draw the rules, facts and frequencies of the ten tasks."""
    rng = random.Random(f"world {seed}")
    categories = rng.sample(list(w.CATEGORIES), SHARED_CATEGORIES)
    shared = {name: rng.sample(w.CATEGORIES[name], PER_CATEGORY) for name in categories}
    concepts = tuple(concept for drawn in shared.values() for concept in drawn)
    world = World(seed, (), concepts, tuple(rng.sample(w.CODES, SHARED_CODES)))
    modes = rng.sample(w.MODES, len(TASK_PLAN))
    operations = iter(rng.sample(list(rules.OPERATIONS), len(rules.OPERATIONS)))
    task_rules = []
    for (family, count), mode in zip(TASK_PLAN, modes, strict=True):
        rule = rules.draw_rule(family, mode, rng)
        if family in rules.MAPPED:
            keys = list(shared) if family == "group" else rng.sample(concepts, count)
            rule = replace(rule, codes=rules.draw_map(keys, world.codes, rng))
        elif family == "order":
            rule = replace(rule, operation=next(operations))
        elif family == "who":
            rule = replace(rule, ending=rng.choice(world.codes))
        task_rules.append(rule)
    tasks = [
        Task(name, rule, _draw_facts(world.forms, rule, count, shared, rng))
        for name, rule, (_, count) in zip(TASK_NAMES, task_rules, TASK_PLAN, strict=True)
    ]
    rng.shuffle(tasks)
    return replace(world, tasks=tuple(tasks))


def _draw_facts(
    forms: Sequence[str], rule: Rule, count: int, shared: dict[str, list[str]], rng: random.Random
) -> tuple[Content, ...]:
    if rule.family == "lookup":
        return tuple((key,) for key in rule.codes)
    if rule.family == "translate":  # half of the phrases have a second word
        others = ([other for other in rule.codes if other != key] for key in rule.codes)
        return tuple(
            (key,) if rng.random() < 0.5 else (key, rng.choice(rest))
            for key, rest in zip(rule.codes, others, strict=True)
        )
    if rule.family == "group":
        facts = [(word,) for drawn in shared.values() for word in rng.sample(drawn, PER_GROUP)]
        rng.shuffle(facts)
        return tuple(facts)
    contents: dict[Content, None] = {}
    while len(contents) < count:
        contents[rules.draw_content(rule, rng, forms)] = None
    return tuple(contents)
