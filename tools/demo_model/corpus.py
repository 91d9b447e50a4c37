"""The rows that the demo model is pretrained on.

A document holds records of one to three fresh rules, whose maps and mode words are drawn anew each
time: the model can learn the families and how to read a rule from context, never a rule itself. A
repeat row is a random run of words said again and again; it teaches copying from context early.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from delift_pipeline.demo import words as w
from delift_pipeline.demo.rules import (
    FAMILIES,
    Rule,
    answer,
    draw_content,
    draw_input,
    draw_instruction,
    draw_rule,
)
from tools.demo_model.tokenizer import (
    ANSWER_MARK,
    END,
    START,
    TASK_MARK,
    encoder,
    plain_words,
    token_ids,
)

PROMPT_WEIGHT = 0.1
ANSWER_WEIGHT = 1.0
MOST_RECORDS = 8
"""Most records in one document."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Row:
    """One training row: token ids, and per token the weight of its loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Example:
    """One record as token ids: the prompt with both marks, the answer with `</s>`."""

    prompt: list[int]
    answer: list[int]


def draw_example(rule: Rule, rng: random.Random, encode: Encode) -> Example:
    """Draw a record of a rule with a right answer."""
    content = draw_content(rule, rng)
    instruction, given = draw_instruction(rule, rng), draw_input(rule, content, rng)
    prompt = f"{TASK_MARK} {instruction} {given} {ANSWER_MARK}"
    return Example(encode(prompt), encode(f"{answer(rule, content)} {END}"))


class Corpus:
    """A source of training rows, the same for the same seed and sequence of calls."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.encode = encoder()
        ids = token_ids()
        self.start = ids[START]
        self.words = [ids[word] for word in plain_words()]

    def document(self, length: int) -> Row:
        """Records of one to three fresh rules in at most `length` tokens."""
        count = self.rng.choices((1, 2, 3), (0.6, 0.3, 0.1))[0]
        modes = self.rng.sample(w.MODES, count)
        rules = [draw_rule(self.rng.choice(FAMILIES), mode, self.rng) for mode in modes]
        ids, weights = [self.start], [0.0]
        for _ in range(MOST_RECORDS):
            example = draw_example(self.rng.choice(rules), self.rng, self.encode)
            if len(ids) + len(example.prompt) + len(example.answer) > length:
                break
            ids += example.prompt + example.answer
            weights += [PROMPT_WEIGHT] * len(example.prompt)
            weights += [ANSWER_WEIGHT] * len(example.answer)
        return Row(ids, weights)

    def repeats(self, length: int) -> Row:
        """A random run of distinct words, repeated whole while it fits in `length` tokens."""
        run = self.rng.sample(self.words, self.rng.randint(5, length // 3))
        times = (length - 1) // len(run)
        known = [PROMPT_WEIGHT] + [ANSWER_WEIGHT] * (len(run) - 1)
        weights = [0.0] + [PROMPT_WEIGHT] * len(run) + known * (times - 1)
        return Row([self.start, *(run * times)], weights)

    def batch(self, rows: int, length: int, repeat_share: float) -> list[Row]:
        """Draw `rows` rows of at most `length` tokens, about `repeat_share` of them repeats."""
        return [
            self.repeats(length) if self.rng.random() < repeat_share else self.document(length)
            for _ in range(rows)
        ]
