"""Neighbours by an inverted index: those of the chunked search, whatever the number of threads."""

import numpy as np
import pytest

from delift_pipeline.scoring import near_words, neighbours
from delift_pipeline.scoring.near_words import nearest_by_words
from delift_pipeline.scoring.neighbours import embed, nearest

WORDS = "red green blue apple pear plum big small sweet sour one two three".split()


def texts_of(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    drawn = [" ".join(rng.choice(WORDS, int(rng.integers(0, 7)))) for _ in range(count)]
    return [*drawn, "quantum", "", drawn[0]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [7, 512])
def test_the_same_neighbours_as_by_chunks(
    seed: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_words, "ROWS", rows)
    embeddings = embed(texts_of(120, seed))
    # Cosines that the sixth decimal alone sets apart are ties within the rounding of float32.
    for m in (1, 5, 200):
        chunked = nearest(embeddings, m)
        indices, cosine = nearest_by_words(embeddings, m)
        assert cosine == pytest.approx(chunked.cosine, abs=1.1e-6)
        apart = np.abs(np.diff(cosine, axis=1, append=0)) > 3e-6
        distinct = np.logical_and(apart, np.roll(apart, 1, axis=1))[:, 1:-1]
        assert (indices[:, 1:-1] == chunked.indices[:, 1:-1])[distinct].all()
        assert ((indices >= 0) == (chunked.indices >= 0)).all()


def test_ties_go_by_row_number_and_a_row_is_not_its_own_neighbour() -> None:
    indices, cosine = nearest_by_words(embed(["same words"] * 4 + ["other"]), 3)
    assert indices.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [-1, -1, -1]]
    assert (cosine[:4] == 1).all() and not cosine[4].any()


def test_many_texts_are_searched_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = embed(texts_of(60, 9))
    few = nearest(embeddings, 4)
    monkeypatch.setattr(neighbours, "_COMPILED_FROM", 1)
    many = nearest(embeddings, 4)
    assert many.cosine == pytest.approx(few.cosine, abs=1.1e-6)
    assert many.cosine.tolist() == nearest_by_words(embeddings, 4)[1].tolist()
    assert nearest(embeddings.toarray(), 4).cosine == pytest.approx(few.cosine, abs=1.1e-6)
