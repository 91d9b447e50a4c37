"""Support: how much a record's own prompt tells the model about its answer.

    support_i = (1 / sqrt(T_i)) sum_t [ log p(y_it | x_i, y_i<t) - log p(y_it | y_i<t) ]

The sum is over the answer's tokens without the token that ends it. T_i also counts that token, as
everywhere. Without its prompt, an answer stands after the template's empty prompt.

The sum is the pointwise mutual information of prompt and answer under the model. DELIFT's utility
of a demonstration is the same quantity, given the prompt (arXiv 2411.04425, section 3): there a
demonstration is judged by what it tells about an answer, and here the prompt is. A prompt tells
little about an answer that was given to another prompt. Two passes a record suffice, and no pairs.

By chance the sum varies with the square root of the number of tokens. So this divides by that
root, and short and long answers can be compared.
"""

from collections.abc import Sequence

import numpy as np

from delift_pipeline.scoring.store import ScoreStore


def support_of(store: ScoreStore, record_ids: Sequence[str]) -> np.ndarray:
    """Return the support of records in nats, float64 [records]; NaN where a score is missing."""
    prompted, unprompted = (sums.astype(np.float64) for sums in store.answer_sums(record_ids))
    tokens = store.baseline(record_ids).tokens
    return (prompted - unprompted) / np.sqrt(np.where(tokens > 0, tokens, np.nan))
