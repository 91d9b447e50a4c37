"""From token log-probabilities to the two numbers that are stored for a pair."""

from dataclasses import dataclass

import numpy as np

from delift_pipeline.scoring.engine import TokenScores


@dataclass(frozen=True)
class PairScores:
    """Scores of several pairs.

    Attributes:
        squared_distance: d^2 = ||1 - p||^2 / T, float32 [pairs], in [0, 1].
        sum_logprob: Sum of the answer tokens' log-probabilities in nats, float32 [pairs].
    """

    squared_distance: np.ndarray
    sum_logprob: np.ndarray


def reduce_scores(scores: TokenScores) -> PairScores:
    """Distance and summed log-probability of each target.

    The distance is that of DELIFT (arXiv 2411.04425): d = ||1 - p||_2 / sqrt(T) over the T answer
    tokens. Sums are taken in float64, so that a score does not depend on the length of the job.
    """
    logprobs = scores.logprobs.astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(scores.lengths)[:-1]]).astype(np.int64)
    if not len(scores.lengths):
        empty = np.empty(0, dtype=np.float32)
        return PairScores(empty, empty.copy())
    # 1 - p = -expm1(log p) keeps its digits where p is close to 1.
    missing = np.square(np.expm1(logprobs))
    squared = np.add.reduceat(missing, starts) / scores.lengths
    total = np.add.reduceat(logprobs, starts)
    return PairScores(squared.astype(np.float32), total.astype(np.float32))
