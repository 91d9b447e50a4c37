"""The interface of scoring engines, and the two numbers that are stored for a pair."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from delift_pipeline.prompts.encode import EncodedRecords


@dataclass(frozen=True)
class Job:
    """A prefix and the targets to score after it.

    Attributes:
        prefix: Tokens before every target, int32 [tokens]: `EncodedRecords.prefix(...)` of no
            demonstration, one or several.
        rows: Rows of the targets in the encoded records, int [targets].
    """

    prefix: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced log-probabilities of the answers of one job.

    Attributes:
        logprobs: log p of every true answer token, in nats, float32, target after target.
        lengths: How many answer tokens each target has, int32 [targets].
        halved: How many batches were halved because memory ran out.
    """

    logprobs: np.ndarray
    lengths: np.ndarray
    halved: int = 0


class Engine(Protocol):
    """An engine computes log-probabilities of answers after prefixes.

    The result of a job depends on the job and the engine's options alone, bit for bit. An engine
    whose settings say `in_flight` above 1 puts that many jobs of a call into common batches: then
    the result depends on those jobs together.
    """

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the batches; they are stored with the scores."""
        ...

    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs and return one result for each; many jobs at once fill a large device.

        Raises:
            DeliftError: a single pair does not fit in memory, or the model gives no numbers.
        """
        ...


class PairScores(NamedTuple):
    """The scores of several pairs; a pair that a store does not have is NaN.

    Attributes:
        squared_distance: d^2 = ||1 - p||^2 / T, float32 [pairs], in [0, 1].
        sum_logprob: Sum of the answer tokens' log-probabilities in nats, float32 [pairs].
    """

    squared_distance: np.ndarray
    sum_logprob: np.ndarray


def without_end(scores: TokenScores) -> TokenScores:
    """Return the scores with the token that ends each answer as certain (log p = 0).

    So sums leave this token out, and an answer still has its T tokens.
    """
    logprobs = scores.logprobs.copy()
    logprobs[np.cumsum(scores.lengths) - 1] = 0.0
    return replace(scores, logprobs=logprobs)


def reduce_scores(scores: TokenScores) -> PairScores:
    """Reduce token scores to the squared distance and summed log-probability of each target.

    The distance is that of DELIFT (arXiv 2411.04425): d = ||1 - p||_2 / sqrt(T) over the T answer
    tokens. Sums are in float64, so a score does not depend on the length of the job.
    """
    logprobs, lengths = scores.logprobs.astype(np.float64), scores.lengths.astype(np.int64)
    if not len(lengths):
        return PairScores(*np.empty((2, 0), dtype=np.float32))
    # 1 - p = -expm1(log p) keeps its digits where p is close to 1.
    terms = np.stack([np.square(np.expm1(logprobs)), logprobs])
    squared, total = np.add.reduceat(terms, np.cumsum(lengths) - lengths, axis=1)
    return PairScores((squared / lengths).astype(np.float32), total.astype(np.float32))
