"""Embeddings by whichever embedder is named, the language model's own hidden states among them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.scoring.neighbours import embed
from delift_pipeline.selection.language_model import LanguageModel

MODEL = "model"
"""The embedder that is the language model itself."""


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
        raise Refused(Fault(said, field="embedder"))
    return _hidden_states(texts, model)


def _hidden_states(texts: Sequence[str], model: LanguageModel) -> np.ndarray:
    from delift_pipeline.selection.reading import (
        begin_of_text,
        position_weighted,
        read,
        without_middle,
    )

    begin = begin_of_text(model.encoder)
    room = model.encoder.window - len(begin)
    tokens = [np.asarray(one.ids, np.int32) for one in model.encoder.plain.encode(list(texts))]
    there = [row for row, ids in enumerate(tokens) if len(ids)]
    sequences = [np.concatenate([begin, without_middle(tokens[row], room)]) for row in there]
    if not there:
        return np.zeros((len(texts), 1), np.float32)
    states = read(model, sequences, position_weighted, "embeddings")
    embeddings = np.zeros((len(texts), states.shape[1]), np.float32)
    embeddings[there] = states
    return embeddings
