"""Multiple choice by the log-probability of each option's letter (MMLU, Hendrycks et al. 2021)."""

import re

import polars as pl

from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.engines import EvaluationEngine
from delift_pipeline.prompts.encode import Encoder
from delift_pipeline.training.batches import encode_examples

OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s", re.MULTILINE)
FEWEST = 2


def listed_options(prompt: str) -> list[str]:
    """The letters of the options a prompt lists, one at the start of a line each.

    Only a run A, B, C ... counts; empty where fewer than two are listed.
    """
    letters: list[str] = []
    for letter in OPTION.findall(prompt):
        if letter == chr(ord("A") + len(letters)):
            letters.append(letter)
    return letters if len(letters) >= FEWEST else []


def choice_accuracy(
    engine: EvaluationEngine, encoder: Encoder, records: pl.DataFrame, progress: Progress
) -> list[float | None]:
    """Whether the right option's letter is the most likely of all that the prompt lists.

    An option's score is the summed log-probability of its letter's tokens after the prompt, the
    end-of-text token left out; the first of equal ones counts as chosen.

    `records` are scorable ones (`RECORD_SCHEMA`) whose output is the right letter.

    Returns:
        1.0, 0.0, or None where the prompt lists no options or the output is none of them.
    """
    right = [output.strip() for output in records["output"]]
    prompts = records.select(pl.concat_str("instruction", "input", separator="\n")).to_series()
    listed = [
        letters if answer in (letters := listed_options(prompt)) else []
        for prompt, answer in zip(prompts, right, strict=True)
    ]
    options = [(i, letter) for i, letters in enumerate(listed) for letter in letters]
    if not options:
        return [None] * records.height
    asked = records[[i for i, _ in options]].with_columns(
        record_id=pl.Series([f"{i}-{letter}" for i, letter in options]),
        output=pl.Series([letter for _, letter in options]),
    )
    examples, _ = encode_examples(encoder, asked)
    losses = engine.losses(examples, progress, "multiple choice")
    # A letter takes no more room than the answer, so a record that fits fits with any letter.
    scores = {
        example.record_id: -float(tokens[:-1].sum())
        for example, tokens in zip(examples, losses, strict=True)
    }

    def right_is_best(i: int) -> float:
        best = max(listed[i], key=lambda letter: scores[f"{i}-{letter}"])
        return float(best == right[i])

    return [right_is_best(i) if listed[i] else None for i in range(records.height)]
