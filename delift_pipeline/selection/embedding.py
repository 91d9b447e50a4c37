"""Similarity of records by the embeddings of their texts, which measures coverage.

    S_ij = max(cos(e_i, e_j), 0),  S_ii = 1        e_i = embedding of a text of record i

The text is the prompt, or prompt and answer. A wrong answer joins two topics, so by prompt and
answer it seems to cover more than a right one.

Cosines are rounded to six decimals, and records are embedded in order of record_id. So the choice
depends neither on the order of the file nor on the order of a sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import InputError
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
"""The name of the embedder that reads the language model's own hidden states."""
DENSE_LIMIT = 4000
"""Up to this many records every cosine is kept (64 MB); beyond it, the nearest of each record."""
NEAREST = 100
CHUNK = 1 << 16
"""How many pairs of embeddings are multiplied at once."""


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
        """Return the cosines of some records with others, as a dense array or a CSC matrix.

        Raises:
            KeyError: A record was not embedded.
        """
        place = {record: number for number, record in enumerate(self.ids)}
        at_rows, at_columns = (
            np.array([place[record] for record in ids], dtype=np.int64) for ids in (rows, columns)
        )
        if isinstance(self.matrix, np.ndarray):
            return self.matrix[np.ix_(at_rows, at_columns)]
        return self.matrix[at_rows][:, at_columns].tocsc()


def embed_texts(texts: Sequence[str], embedder: str, model: LanguageModel | None) -> Any:
    """Return unit embeddings of texts, float32 [texts, d]; an empty text has a zero row.

    The result is a SciPy CSR matrix for `tfidf`, and an array otherwise. `embedder` is `model` or a
    name that `scoring.neighbours.embed` accepts. With `model`, an embedding is the mean of the last
    layer's hidden states of the language model, weighted by position (Muennighoff 2022).

    Raises:
        InputError: The embedder or the model cannot be loaded, or there is no model.
    """
    if embedder != MODEL:
        return embed(texts, embedder)
    if model is None:
        reason = "this selection has no language model to embed with. Choose tfidf, minilm or a"
        raise InputError(f"{reason} sentence-transformers model", field="embedder")
    return hidden_states(texts, model, "embeddings")


def hidden_states(texts: Sequence[str], model: LanguageModel, name: str) -> np.ndarray:
    """Return position-weighted means of hidden states, float32 [texts, width] of length 1 or 0.

    Texts longer than the window lose their middle. `name` is the label of the progress display.
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
    """Return prompt and answer of each record as one text, which is embedded for coverage."""
    pairs = zip(prompt_texts(frame), frame["output"], strict=True)
    return [f"{prompt}\n{answer}" for prompt, answer in pairs]


def similarities(
    frame: pl.DataFrame,
    embedder: str = "tfidf",
    *,
    dense_limit: int = DENSE_LIMIT,
    neighbours: int = NEAREST,
    model: LanguageModel | None = None,
    texts_of: Callable[[pl.DataFrame], list[str]] = record_texts,
) -> Similarities:
    """Embed records and compute their cosines, of all pairs or of nearest neighbours.

    Up to `dense_limit` records every cosine is kept. Beyond it, a cosine is kept if one record is
    among the `neighbours` nearest of the other, and all others are 0. `texts_of` returns the text
    of each record that is embedded.

    Raises:
        InputError: The embedder cannot be loaded.
    """
    ordered = frame.sort("record_id")
    ids, n = tuple(ordered["record_id"]), ordered.height
    embeddings = embed_texts(texts_of(ordered), embedder, model)
    if n <= dense_limit:
        cosines = np.clip(dense_cosines(embeddings, embeddings), 0, 1).astype(np.float32)
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
    """Return `similarities` of records with the embedder and limits of a selector's options."""
    prompts = isinstance(options, TrustedOptions) and options.covers == "prompts"
    return similarities(
        frame,
        options.embedder,
        dense_limit=options.dense_limit,
        neighbours=options.coverage_neighbours,
        model=model,
        texts_of=prompt_texts if prompts else record_texts,
    )


def dense_cosines(left: Any, right: Any) -> np.ndarray:
    """Return the cosines of all pairs of rows of two embeddings, float [left, right], rounded."""
    product = left @ right.T
    cosines = product if isinstance(product, np.ndarray) else product.toarray()
    return np.round(cosines, COSINE_DECIMALS)


def cosines_at(embeddings: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return non-negative cosines of pairs of rows, float64 [pairs], rounded to six decimals."""
    cosines = np.zeros(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        left, right = embeddings[rows[part]], embeddings[columns[part]]
        if isinstance(left, np.ndarray):
            cosines[part] = np.einsum("ij,ij->i", left, right)
        else:
            cosines[part] = np.asarray(left.multiply(right).sum(axis=1)).ravel()
    return np.clip(np.round(cosines, COSINE_DECIMALS), 0, 1)
