"""What a judge said of one model's answers: means, errors, and how scores are spread."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.evaluation.judge.prompt import Question
from delift_pipeline.evaluation.judge.reply import DIGITS, Reply
from delift_pipeline.evaluation.result import mean_and_error

JUDGED_SCHEMA = pl.Schema(
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
        mean: Mean of those that are scored, or None.
        se: Its standard error over records.
        scored: How many are.
        unparsable: Replies without a score in them; in no mean.
        failed: Questions without a reply.
        distribution: How many scores round to 1, 2, 3, 4 and 5.
    """

    mean: float | None
    se: float | None
    scored: int
    unparsable: int
    failed: int
    distribution: dict[str, int]


@dataclass(frozen=True)
class Judged:
    """A judge's scores of one model's answers.

    Attributes:
        rows: One row a question (`JUDGED_SCHEMA`).
        dimensions: Scores by dimension.
        overall: Of each record's mean over its dimensions, where all of them are scored.
        tokens: Tokens asked and replied.
    """

    rows: pl.DataFrame = field(repr=False)
    dimensions: dict[str, Scores]
    overall: Scores
    tokens: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "overall": asdict(self.overall),
            "dimensions": {name: asdict(scores) for name, scores in self.dimensions.items()},
            "tokens": self.tokens,
        }

    @property
    def record_means(self) -> pl.DataFrame:
        """`record_id` and `score`, for records whose every dimension is scored."""
        whole = pl.col("score").is_not_null().all()
        means = self.rows.group_by("record_id", maintain_order=True).agg(
            score=pl.when(whole).then(pl.col("score").mean())
        )
        return means.drop_nulls()


def judged(questions: Sequence[Question], replies: Mapping[str, Reply]) -> Judged:
    """Put replies and questions together.

    Args:
        questions: All questions about one model's answers.
        replies: By question key; one that is missing counts as failed.
    """
    absent = Reply("failed", None, "not asked yet")
    found = [(one, replies.get(one.key, absent)) for one in questions]
    rows = pl.DataFrame(
        [(q.record_id, q.dimension, r.status, r.score, r.text) for q, r in found],
        schema=JUDGED_SCHEMA,
        orient="row",
    )
    dimensions = {
        str(name): _scores(part["score"], part["status"])
        for (name,), part in rows.group_by("dimension", maintain_order=True)
    }
    tokens = {
        "asked": sum(reply.prompt_tokens for _, reply in found),
        "replied": sum(reply.reply_tokens for _, reply in found),
    }
    whole = Judged(rows, dimensions, _scores(rows["score"], rows["status"]), tokens)
    overall = _scores(whole.record_means["score"], rows["status"])
    return Judged(rows, dimensions, overall, tokens)


def _scores(scores: pl.Series, statuses: pl.Series) -> Scores:
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
