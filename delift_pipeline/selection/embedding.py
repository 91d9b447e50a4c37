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
from delift_pipeline.selection.language_model import LanguageModel

MODEL = "model"
"""The embedder that is the language model itself."""
DENSE_LIMIT = 4000
"""Up to this many records every cosine is kept (64 MB); beyond, the nearest of each record."""
NEAREST = 100


@dataclass(frozen=True)
class Similarities:
    """Non-negative cosines of records with each other.

    Attributes:
        ids: n record_ids, sorted.
        matrix: float32 [n, n], a dense array or a SciPy CSR matrix; the diagonal is 1.
    """

    ids: tuple[str, ...]
    matrix: Any = field(repr=False)

    def part(self, rows: Sequence[str], columns: Sequence[str]) -> Any:
        """The cosines of some records with some others: a dense array or a CSC matrix.

        Raises:
            KeyError: a record was not embedded.
        """
        place = {record: number for number, record in enumerate(self.ids)}
        row_numbers = np.array([place[record] for record in rows], dtype=np.int64)
        column_numbers = np.array([place[record] for record in columns], dtype=np.int64)
        if isinstance(self.matrix, np.ndarray):
            return self.matrix[np.ix_(row_numbers, column_numbers)]
        return self.matrix[row_numbers][:, column_numbers].tocsc()


def embedded(texts: Sequence[str], embedder: str, model: LanguageModel | None) -> Any:
    """Unit embeddings of texts; a text without any content gets a zero row.

    Under `model` an embedding is the mean of the last layer's hidden states weighted by position
    (Muennighoff 2022); a text beyond the window is cut in its middle.

    Args:
        texts: n texts.
        embedder: `model`, or what `scoring.neighbours.embed` reads.
        model: The language model, read for `model` only.

    Returns:
        float32 [n, d], rows of length 1 or 0; a SciPy CSR matrix for `tfidf`, else an array.

    Raises:
        Refused: the embedder or the model cannot be loaded, or there is no model.
    """
    if embedder != MODEL:
        return embed(texts, embedder)
    if model is None:
        said = "no language model is read here: choose tfidf, minilm or a sentence-transformers one"
        raise Refused(said, field="embedder")
    return hidden_states(texts, model, "embeddings")


def hidden_states(texts: Sequence[str], model: LanguageModel, name: str) -> np.ndarray:
    """Position-weighted hidden states of whole texts, float32 [texts, width] of length 1 or 0.

    Args:
        texts: Texts; those beyond the window are cut in their middle.
        model: What reads them.
        name: What the progress is called.
    """
    from delift_pipeline.selection.reading import (
        begin_of_text,
        position_weighted,
        read,
        text_tokens,
        without_middle,
    )

    begin = begin_of_text(model.encoder)
    room = model.encoder.window - len(begin)
    tokens = text_tokens(model.encoder, texts)
    there = [row for row, ids in enumerate(tokens) if len(ids)]
    if not there:
        return np.zeros((len(texts), 1), np.float32)
    sequences = [np.concatenate([begin, without_middle(tokens[row], room)]) for row in there]
    states = read(model, sequences, position_weighted, name)
    embeddings = np.zeros((len(texts), states.shape[1]), np.float32)
    embeddings[there] = states
    return embeddings


def record_texts(frame: pl.DataFrame) -> list[str]:
    """Prompt and answer of each record, as embedded for coverage."""
    answers = frame["output"].to_list()
    return [
        f"{prompt}\n{answer}" for prompt, answer in zip(prompt_texts(frame), answers, strict=True)
    ]


def similarities(
    frame: pl.DataFrame,
    embedder: str = "tfidf",
    *,
    dense_limit: int = DENSE_LIMIT,
    neighbours: int = NEAREST,
    model: LanguageModel | None = None,
) -> Similarities:
    """Embed records and compare all with all, or each with its nearest where there are many.

    Args:
        frame: n records with distinct record_ids.
        embedder: See `embedded`.
        dense_limit: Up to this n every cosine is kept.
        neighbours: Beyond it, how many nearest records of each are; the others count as 0.
        model: The language model, for the embedder `model`.

    Raises:
        Refused: the embedder cannot be loaded.
    """
    ordered = frame.sort("record_id")
    embeddings = embedded(record_texts(ordered), embedder, model)
    dense = ordered.height <= dense_limit
    matrix = _all_cosines(embeddings) if dense else _nearest_cosines(embeddings, neighbours)
    return Similarities(tuple(ordered["record_id"]), matrix)


def _all_cosines(embeddings: Any) -> np.ndarray:
    product = embeddings @ embeddings.T
    cosines = product if isinstance(product, np.ndarray) else product.toarray()
    cosines = np.clip(np.round(cosines, COSINE_DECIMALS), 0, 1).astype(np.float32)
    np.fill_diagonal(cosines, 1)
    return cosines


def _nearest_cosines(embeddings: Any, m: int) -> Any:
    """A symmetric CSR matrix: a pair stands in it where one is among the other's nearest."""
    from scipy.sparse import csr_matrix, eye

    found = nearest(embeddings, m)
    n = len(found.indices)
    rows, slots = np.nonzero(found.indices >= 0)
    near = csr_matrix((found.cosine[rows, slots], (rows, found.indices[rows, slots])), shape=(n, n))
    return (near.maximum(near.T) + eye(n, format="csr")).astype(np.float32).tocsr()


def cosines_at(embeddings: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Non-negative cosines of given pairs of rows, float64 [pairs], rounded to six decimals."""
    chunk = 1 << 16
    parts = [
        _products(embeddings, rows[first : first + chunk], columns[first : first + chunk])
        for first in range(0, len(rows), chunk)
    ]
    cosines = np.concatenate([np.zeros(0), *parts])
    return np.clip(np.round(cosines, COSINE_DECIMALS), 0, 1)


def _products(embeddings: Any, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    left, right = embeddings[rows], embeddings[columns]
    if isinstance(left, np.ndarray):
        return np.einsum("ij,ij->i", left, right).astype(np.float64)
    return np.asarray(left.multiply(right).sum(axis=1), dtype=np.float64).ravel()
