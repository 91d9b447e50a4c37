"""From what a judge replied to a score, or to nothing: an unclear reply is never guessed at."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from delift_pipeline.evaluation.judge.rubric import HIGHEST, LOWEST

LINE = re.compile(r"\**(?:score|\[result\])\**\s*:?\s*\**\s*([1-5])\**\s*(?:/\s*5)?\.?\**", re.I)
DIGITS = tuple(str(score) for score in range(LOWEST, HIGHEST + 1))
Status = Literal["scored", "unparsable", "failed"]


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        status: `scored`; `unparsable`: there is a reply but no score in it; `failed`: no reply.
        score: From 1 to 5, whole where it was written; None unless scored.
        text: The reply, or why there is none.
        prompt_tokens: Tokens of the question, as the judge counts them.
        reply_tokens: Tokens of the reply.
    """

    status: Status
    score: float | None
    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        """All of it, for the journal."""
        return asdict(self)


def written_score(text: str) -> int | None:
    """The score on the last line, `Score: N`, where N is 1 to 5; None for anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = LINE.fullmatch(lines[-1]) if lines else None
    return int(found[1]) if found else None


def expected_score(
    tokens: Iterable[tuple[str, float]], least_mass: float
) -> tuple[float | None, float]:
    """The mean of the scores 1 to 5, each weighted by the probability of its digit.

        sum_s s p(s) / sum_s p(s),  p(s) = summed probability of the tokens that read s

    Args:
        tokens: Text and log-probability of the tokens the reply may begin with.
        least_mass: Least sum of p(s) for which the mean counts.

    Returns:
        The score, or None where the digits are too unlikely; and the sum of p(s).
    """
    mass = dict.fromkeys(DIGITS, 0.0)
    for text, logprob in tokens:
        if (digit := text.strip()) in mass:
            mass[digit] += math.exp(logprob)
    total = sum(mass.values())
    if total <= 0 or total < least_mass:
        return None, total
    return sum(int(digit) * share for digit, share in mass.items()) / total, total
