"""Judge the stored answers of a model: what it costs first, then every question once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl
from filelock import FileLock

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.judge.journal import Journal
from delift_pipeline.evaluation.judge.options import JudgeOptions
from delift_pipeline.evaluation.judge.prompt import SYSTEM, Question, question
from delift_pipeline.evaluation.judge.reply import Reply
from delift_pipeline.evaluation.judge.result import Judged, judged
from delift_pipeline.evaluation.judge.rubric import dimensions_of
from delift_pipeline.progress import Progress, SilentProgress

CHARACTERS_PER_TOKEN = 4
WRITTEN_TOKENS = 120
"""Length of a written judgement for the estimate: two or three sentences and a line."""


class Judge(Protocol):
    """Who is asked."""

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Each question with its reply, in any order."""
        ...


@dataclass(frozen=True)
class Estimate:
    """What judging will take, before it is done.

    Attributes:
        questions: All of them.
        known: Those replied to already.
        requests: Those that will be asked, each distinct one once.
        prompt_tokens: Of the requests, at four characters a token.
        reply_tokens: Of the replies.
        price: In the prices' currency, or None where no price is given.
    """

    questions: int
    known: int
    requests: int
    prompt_tokens: int
    reply_tokens: int
    price: float | None


def questions_for(samples: pl.DataFrame, options: JudgeOptions) -> list[Question]:
    """Everything a judge is asked about a model's generated answers.

    Args:
        samples: `SAMPLE_SCHEMA`; rows without a generated answer or a reference are refused.
        options: The mode decides how many questions a record makes.

    Raises:
        Refused: a row has no generated answer.
    """
    without = samples.filter(pl.col("generated").is_null())
    if samples.is_empty() or without.height:
        reason = "no generated answers to judge: evaluate with a metric that needs them"
        raise Refused(Fault(reason, field="metrics"))
    return [
        question(
            row["record_id"],
            dimension,
            "\n\n".join(filter(None, (row["instruction"], row["input"]))),
            row["reference"],
            row["generated"],
            options.scoring,
        )
        for row in samples.iter_rows(named=True)
        for dimension in dimensions_of(options.mode)
    ]


def estimate(questions: Sequence[Question], folder: Path, options: JudgeOptions) -> Estimate:
    """What asking the questions takes, those of earlier runs not counted."""
    waiting = _waiting(questions, Journal(folder))
    letters = sum(len(SYSTEM) + len(one.text) for one in waiting)
    written = min(options.max_tokens, WRITTEN_TOKENS)
    prompt_tokens = letters // CHARACTERS_PER_TOKEN
    reply_tokens = len(waiting) * (written if options.scoring == "written" else 1)
    price = None
    if options.price_in is not None and options.price_out is not None:
        price = (prompt_tokens * options.price_in + reply_tokens * options.price_out) / 1e6
    known = sum(one.key not in {w.key for w in waiting} for one in questions)
    return Estimate(len(questions), known, len(waiting), prompt_tokens, reply_tokens, price)


def ask(
    judge: Judge, questions: Sequence[Question], folder: Path, progress: Progress | None = None
) -> Judged:
    """Ask what was not asked before, keep every reply at once, and sum all up.

    One process asks at a time; another waits and then finds the replies.

    Args:
        judge: Who is asked.
        questions: All questions about one model's answers.
        folder: Where this judge's journal lies.
        progress: Where progress is shown.
    """
    progress = progress or SilentProgress()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        journal = Journal(folder)
        waiting = _waiting(questions, journal)
        with progress.track("judge", len(waiting), "questions") as meter:
            for one, reply in judge.replies(waiting):
                journal.add(one.key, reply)
                meter.advance()
    return judged(questions, journal.replies)


def _waiting(questions: Sequence[Question], journal: Journal) -> list[Question]:
    distinct = {one.key: one for one in questions}
    return [one for key, one in distinct.items() if key not in journal.replies]
