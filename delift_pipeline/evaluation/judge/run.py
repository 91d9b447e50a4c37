"""Judge the stored answers of a model: estimate the cost, then ask every question once."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock

from delift_pipeline.core.output import json_text
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.evaluation.judge.judges import DIGITS, Judge, Reply
from delift_pipeline.evaluation.judge.questions import SYSTEM, JudgeOptions, Question
from delift_pipeline.evaluation.result import mean_and_error

JOURNAL = "journal.jsonl"
CHARACTERS_PER_TOKEN = 4
WRITTEN_TOKENS = 120
"""The assumed length of a written judgement: two or three sentences and a score line."""

JUDGEMENT_SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),
        "dimension": pl.String(),
        "status": pl.String(),  # scored, unparsable or failed
        "score": pl.Float64(),  # null unless scored
        "reply": pl.String(),
    }
)


@dataclass(frozen=True)
class Scores:
    """The scores of one dimension.

    Attributes:
        mean: Mean of the scores, or None.
        se: Standard error of the mean over records.
        unparsable: How many replies have no score; they are in no mean.
        distribution: How many scores round to 1, 2, 3, 4 and 5.
    """

    mean: float | None
    se: float | None
    scored: int
    unparsable: int
    failed: int
    distribution: dict[str, int]


@dataclass(frozen=True)
class Judgement:
    """A judge's scores of one model's answers.

    Attributes:
        rows: One row for each question (`JUDGEMENT_SCHEMA`).
        overall: Scores of the records: each is a mean over dimensions, if all are scored.
    """

    rows: pl.DataFrame = field(repr=False)
    dimensions: dict[str, Scores]
    overall: Scores
    tokens: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return everything but the rows."""
        return {
            "overall": asdict(self.overall),
            "dimensions": {name: asdict(scores) for name, scores in self.dimensions.items()},
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Estimate:
    """What judging will cost.

    Attributes:
        questions: How many questions there are in all.
        known: How many of them have a stored reply.
        requests: How many distinct questions will be asked.
        prompt_tokens: Estimated tokens of the requests, at four characters a token.
        reply_tokens: Estimated tokens of the replies.
        price: The price in the currency of the options, or None without prices.
    """

    questions: int
    known: int
    requests: int
    prompt_tokens: int
    reply_tokens: int
    price: float | None


class Journal:
    """A judge's replies on disk, so no question is paid for twice.

    Each reply is one line. A killed process can leave only the last line incomplete; it is ignored
    when reading and cut off before the next line. Failed questions are not stored, so they are
    asked again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self.replies: dict[str, Reply] = {}
        written = self.path.read_bytes() if self.path.is_file() else b""
        self._whole = written.rfind(b"\n") + 1
        for line in written[: self._whole].splitlines():
            row: dict[str, Any] = json.loads(line)
            key = row.pop("key")
            self.replies[key] = Reply(**row)

    def add(self, key: str, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns."""
        self.replies[key] = reply
        if reply.status == "failed":
            return
        line = (json_text({"key": key, **asdict(reply)}) + "\n").encode("utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.truncate(self._whole)
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
        self._whole += len(line)

    def unanswered_questions(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions without a reply, equal ones once."""
        distinct = {one.key: one for one in questions}
        return [one for key, one in distinct.items() if key not in self.replies]


def estimate(questions: Sequence[Question], folder: Path, options: JudgeOptions) -> Estimate:
    """Estimate what asking the questions costs, without those that have a stored reply."""
    journal = Journal(folder)
    unanswered = journal.unanswered_questions(questions)
    characters = sum(len(SYSTEM) + len(one.text) for one in unanswered)
    written = min(options.max_tokens, WRITTEN_TOKENS)
    prompt_tokens = characters // CHARACTERS_PER_TOKEN
    reply_tokens = len(unanswered) * (written if options.scoring == "written" else 1)
    price = None
    if options.price_in is not None and options.price_out is not None:
        price = (prompt_tokens * options.price_in + reply_tokens * options.price_out) / 1e6
    known = sum(one.key in journal.replies for one in questions)
    return Estimate(len(questions), known, len(unanswered), prompt_tokens, reply_tokens, price)


def ask_judge(
    judge: Judge, questions: Sequence[Question], folder: Path, progress: Progress | None = None
) -> Judgement:
    """Ask the questions that have no reply yet, store every reply, and return all scores.

    The judge's journal is in `folder`. One process asks at a time; another waits for its replies.
    """
    progress = progress or SilentProgress()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        journal = Journal(folder)
        unanswered = journal.unanswered_questions(questions)
        with progress.track("judge", len(unanswered), "questions") as meter:
            for one, reply in judge.replies(unanswered):
                journal.add(one.key, reply)
                meter.advance()
    return collect_scores(questions, journal.replies)


def collect_scores(questions: Sequence[Question], replies: Mapping[str, Reply]) -> Judgement:
    """Join questions and replies by key; a question without a reply counts as failed."""
    absent = Reply("failed", None, "not asked yet")
    pairs = [(one, replies.get(one.key, absent)) for one in questions]
    rows = pl.DataFrame(
        [(q.record_id, q.dimension, r.status, r.score, r.text) for q, r in pairs],
        schema=JUDGEMENT_SCHEMA,
        orient="row",
    )
    dimensions = {
        str(name): _summarise_scores(part["score"], part["status"])
        for (name,), part in rows.group_by("dimension", maintain_order=True)
    }
    tokens = {
        "asked": sum(reply.prompt_tokens for _, reply in pairs),
        "replied": sum(reply.reply_tokens for _, reply in pairs),
    }
    overall = _summarise_scores(record_means(rows)["score"], rows["status"])
    return Judgement(rows, dimensions, overall, tokens)


def record_means(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `record_id` and mean `score` of the records with scores in all dimensions."""
    all_scored = pl.col("score").is_not_null().all()
    means = rows.group_by("record_id", maintain_order=True).agg(
        score=pl.when(all_scored).then(pl.col("score").mean())
    )
    return means.drop_nulls()


def _summarise_scores(scores: pl.Series, statuses: pl.Series) -> Scores:
    known = scores.drop_nulls()
    counts = Counter(statuses)
    mean, error = mean_and_error(known) if known.len() else (None, None)
    spread = Counter(str(int(score + 0.5)) for score in known)
    return Scores(
        mean,
        error,
        known.len(),
        counts["unparsable"],
        counts["failed"],
        {digit: spread[digit] for digit in DIGITS},
    )
