"""Find nearest rows of a sparse matrix by an inverted index, with compiled code."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from delift_pipeline.core.compiling import compile_function

THREADS = 8
"""The most threads; each needs memory for one number per record."""
SCALE = 1e6
"""Cosines are compared after rounding to six decimals."""
ROWS = 512
"""How many rows a thread searches at a time."""


@compile_function
def _nearest(rows, by_word, indices, cosine, start, end):
    """Fill rows start to end: add up the texts of each word, then keep the m best in row order."""
    word_of, words, values = rows
    text_of, texts, shares = by_word
    count, m = len(indices), indices.shape[1]
    score = np.empty(count)
    for row in range(start, end):
        score[:] = 0.0
        for place in range(word_of[row], word_of[row + 1]):
            word, value = words[place], np.float64(values[place])
            for other in range(text_of[word], text_of[word + 1]):
                score[texts[other]] += value * shares[other]
        score[row] = 0.0
        best, columns = cosine[row], indices[row]
        for j in range(count):
            # Scores that cannot exceed the smallest of the m best after rounding are skipped.
            if score[j] <= best[m - 1] - 1.0 / SCALE:
                continue
            near = np.float32(min(np.round(score[j] * SCALE) / SCALE, 1.0))
            if near <= best[m - 1]:
                continue
            slot = m - 1
            while slot > 0 and best[slot - 1] < near:
                best[slot], columns[slot] = best[slot - 1], columns[slot - 1]
                slot -= 1
            best[slot], columns[slot] = near, j


def nearest_by_words(
    embeddings: Any, m: int, advance: Callable[[int], None] = lambda _: None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the m rows with the greatest cosine to each row; ties go by row number.

    Sums are in float64, row by row, so they do not depend on the number of threads. The embeddings
    are a CSR matrix [n, d] with rows of length 1 or 0 and values of at least 0.

    Returns the rows, int32 [n, m], -1 if no more have a positive cosine; and their cosines, float32
    [n, m], rounded to six decimals, 0 for the same places.
    """
    n = embeddings.shape[0]
    indices, cosine = np.full((n, m), -1, np.int32), np.zeros((n, m), np.float32)
    rows, by_word = _matrix_arrays(embeddings.tocsr()), _matrix_arrays(embeddings.tocsc())

    def search(first: int) -> int:
        end = min(first + ROWS, n)
        _nearest(rows, by_word, indices, cosine, first, end)
        return end - first

    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    with ThreadPoolExecutor(min(THREADS, processors)) as threads:
        for count in threads.map(search, range(0, n, ROWS)):
            advance(count)
    return indices, cosine


def _matrix_arrays(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    return *parts, matrix.data.astype(np.float32)
