"""Single records of the demo world, and what is true about each, kept apart from it.

A prompt (instruction and input) belongs to exactly one part by its own hash: some prompts occur in
pools only, some in held-out sets only, some in target sets only. So no pool ever shares a prompt
with a held-out or a target set, whatever their seeds.
"""

import hashlib
import random
from collections.abc import Iterable
from typing import Literal, TypedDict

from delift_pipeline.demo.rules import Content, answer, draw_input, draw_instruction
from delift_pipeline.demo.world import Task, fact_key

SOURCE = "demo-world"
TRIES = 5000
"""Draws of a wording before its fact counts as used up."""

Part = Literal["pool", "heldout", "target"]
POOL_EIGHTHS, HELDOUT_EIGHTHS = 5, 2
"""Of eight prompts, how many belong to pools and to held-out sets; the rest to target sets."""


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


Prompt = tuple[str, str]


def part_of(instruction: str, given: str) -> Part:
    """The one part in which a prompt may occur."""
    digest = hashlib.blake2b(f"{instruction}\n{given}".encode(), digest_size=8).digest()
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
        prompt = draw_instruction(task.rule, rng), draw_input(task.rule, content, rng)
        if prompt not in seen and part_of(*prompt) == part:
            break
    else:
        raise ValueError(f"no {part} wording of {fact_key(task, content)!r} is left: ask for fewer")
    seen.add(prompt)
    return Record(
        id=f"{part}-{number:05d}",
        instruction=prompt[0],
        input=prompt[1],
        output=answer(task.rule, content),
        source=SOURCE,
        task=task.name,
    )


def prompts_of(records: Iterable[Record]) -> set[Prompt]:
    """The distinct prompts of records."""
    return {(record["instruction"], record["input"]) for record in records}
