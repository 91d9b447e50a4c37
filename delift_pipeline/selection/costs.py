"""What a record costs, where a budget is given in tokens."""

import numpy as np
import polars as pl

BYTES_A_TOKEN = 4
TOKENS = "tokens"


def token_costs(pool: pl.DataFrame) -> np.ndarray:
    """Tokens of each record, float64 [n], at least 1.

    A column `tokens` is believed; without one, a token is taken for every 4 bytes of prompt and
    answer in UTF-8, which is near for English under most tokenizers and generous elsewhere.

    Args:
        pool: Records with instruction, input and output.
    """
    if TOKENS in pool.columns:
        return np.maximum(pool[TOKENS].fill_null(1).cast(pl.Float64).to_numpy(), 1)
    fields = [pl.col(name).fill_null("").str.len_bytes() for name in _TEXTS]
    size = pool.select(pl.sum_horizontal(fields).cast(pl.Float64)).to_series().to_numpy()
    return np.maximum(np.ceil(size / BYTES_A_TOKEN), 1)


_TEXTS = ("instruction", "input", "output")
