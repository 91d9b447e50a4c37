"""Similarity of whole records by their embeddings: what coverage is measured with.

    S_ij = max(cos(e_i, e_j), 0),  S_ii = 1        e_i = embedding of prompt and answer of record i

Cosines are rounded to six decimals and records are embedded in order of record_id, so that neither
the order of a file nor the order of a sum decides what is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import Refused
from delift_pipeline.scoring.neighbours import COSINE_DECIMALS, embed, nearest, prompt_texts
from delift_pipeline.selection.language_model import (
    LanguageModel,
    begin_of_text,
    cut_middle,
    position_weighted_mean,
    reduce_hidden_states,
    text_tokens,
)
from delift_pipeline.selection.options import EmbeddingOptions, TrustedOptions

MODEL = "model"
"""The embedder that is the language model itself."""
DENSE_LIMIT = 4000
"""Up to this many records every cosine is kept (64 MB); beyond, the nearest of each record."""
NEAREST = 100
CHUNK = 1 << 16
"""Pairs whose embeddings are multiplied at once."""


@dataclass(frozen=True)
class Similarities:
    """Non-negative cosines of records with each other.

    Attributes:
        ids: n record_ids, sorted.
        matrix: float32 [n, n], a dense array or a SciPy CSR matrix; the diagonal is 1.
    """

    ids: tuple[str, ...]
    matrix: Any = field(repr=False)

    def submatrix(self, rows: Sequence[str], columns: Sequence[str]) -> Any:
        """The cosines of some records with some others: a dense array or a CSC matrix.

        Raises:
            KeyError: a record was not embedded.
        """
        place = {record: number for number, record in enumerate(self.ids)}
        at_rows, at_columns = (
            np.array([place[record] for record in ids], dtype=np.int64) for ids in (rows, columns)
        )
        if isinstance(self.matrix, np.ndarray):
            return self.matrix[np.ix_(at_rows, at_columns)]
        return self.matrix[at_rows][:, at_columns].tocsc()


def embed_texts(texts: Sequence[str], embedder: str, model: LanguageModel | None) -> Any:
    """Unit embeddings of texts, float32 [texts, d]; a text without content gets a zero row.

    They are a SciPy CSR matrix for `tfidf`, else an array. The embedder is `model`, for which alone
    the language model is read, or what `scoring.neighbours.embed` reads. Under `model` an embedding
    is the mean of the last layer's hidden states weighted by position (Muennighoff 2022).

    Raises:
        Refused: the embedder or the model cannot be loaded, or there is no model.
    """
    if embedder != MODEL:
        return embed(texts, embedder)
    if model is None:
        reason = "no language model is read here: choose tfidf, minilm or a sentence-transformers"
        raise Refused(f"{reason} one", field="embedder")
    return hidden_states(texts, model, "embeddings")


def hidden_states(texts: Sequence[str], model: LanguageModel, name: str) -> np.ndarray:
    """Position-weighted hidden states of texts, float32 [texts, width] of length 1 or 0.

    Texts beyond the window are cut in their middle. `name` is what the progress is called.
    """
    begin = begin_of_text(model.encoder)
    room = model.encoder.window - len(begin)
    tokens = text_tokens(model.encoder, texts)
    filled = [row for row, ids in enumerate(tokens) if len(ids)]
    if not filled:
        return np.zeros((len(texts), 1), np.float32)
    sequences = [np.concatenate([begin, cut_middle(tokens[row], room)]) for row in filled]
    states = reduce_hidden_states(model, sequences, position_weighted_mean, name)
    embeddings = np.zeros((len(texts), states.shape[1]), np.float32)
    embeddings[filled] = states
    return embeddings


def record_texts(frame: pl.DataFrame) -> list[str]:
    """Prompt and answer of each record, as embedded for coverage."""
    pairs = zip(prompt_texts(frame), frame["output"], strict=True)
    return [f"{prompt}\n{answer}" for prompt, answer in pairs]


def similarities(
    frame: pl.DataFrame,
    embedder: str = "tfidf",
    *,
    dense_limit: int = DENSE_LIMIT,
    neighbours: int = NEAREST,
    model: LanguageModel | None = None,
) -> Similarities:
    """Embed n records and compare all with all, or each with its nearest where there are many.

    Up to `dense_limit` records every cosine is kept. Beyond it a pair counts where one is among the
    `neighbours` nearest of the other, and all other pairs are 0.

    Raises:
        Refused: the embedder cannot be loaded.
    """
    ordered = frame.sort("record_id")
    ids, n = tuple(ordered["record_id"]), ordered.height
    embeddings = embed_texts(record_texts(ordered), embedder, model)
    if n <= dense_limit:
        product = embeddings @ embeddings.T
        cosines = product if isinstance(product, np.ndarray) else product.toarray()
        cosines = np.clip(np.round(cosines, COSINE_DECIMALS), 0, 1).astype(np.float32)
        np.fill_diagonal(cosines, 1)
        return Similarities(ids, cosines)
    from scipy.sparse import csr_matrix, eye

    near = nearest(embeddings, neighbours)
    rows, slots = np.nonzero(near.indices >= 0)
    one_way = csr_matrix((near.cosine[rows, slots], (rows, near.indices[rows, slots])), (n, n))
    both_ways = one_way.maximum(one_way.T) + eye(n, format="csr")
    return Similarities(ids, both_ways.astype(np.float32).tocsr())


def coverage_similarities(
    frame: pl.DataFrame, options: EmbeddingOptions | TrustedOptions, model: LanguageModel | None
) -> Similarities:
    """`similarities` of records, embedded and cut off as a selector's options say."""
    limits = {"dense_limit": options.dense_limit, "neighbours": options.coverage_neighbours}
    return similarities(frame, options.embedder, **limits, model=model)


def cosines_at(embeddings: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Non-negative cosines of given pairs of rows, float64 [pairs], rounded to six decimals."""
    cosines = np.zeros(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        left, right = embeddings[rows[part]], embeddings[columns[part]]
        if isinstance(left, np.ndarray):
            cosines[part] = np.einsum("ij,ij->i", left, right)
        else:
            cosines[part] = np.asarray(left.multiply(right).sum(axis=1)).ravel()
    return np.clip(np.round(cosines, COSINE_DECIMALS), 0, 1)
