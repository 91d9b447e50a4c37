"""Nearest prompts: exact, deterministic, and honest about records that have none."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts


def brute_force(rows: np.ndarray, m: int) -> list[list[int]]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    cosine = np.round((unit @ unit.T).astype(np.float32), 6)
    np.fill_diagonal(cosine, -1)
    order = np.argsort(-cosine, axis=1, kind="stable")
    return [[int(j) for j in order[i][:m] if cosine[i, j] > 0] for i in range(len(rows))]


def found(indices: np.ndarray) -> list[list[int]]:
    return [[int(j) for j in row if j >= 0] for row in indices]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 15),
    st.lists(st.integers(-2, 2), min_size=36, max_size=36),
)
def test_nearest_equals_brute_force_with_ties_by_index(n: int, m: int, values: list[int]) -> None:
    rows = np.array(values, dtype=np.float64).reshape(12, 3)[:n]
    neighbours = nearest(rows, m)
    assert neighbours.indices.shape == neighbours.cosine.shape == (n, m)
    assert found(neighbours.indices) == brute_force(rows, m)


def test_identical_prompts_are_each_others_neighbours_in_order() -> None:
    neighbours = nearest(embed(["same words here"] * 5), 3)
    assert found(neighbours.indices) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert (neighbours.cosine == 1).all()


def test_a_record_that_shares_no_word_has_no_neighbour() -> None:
    neighbours = nearest(embed(["red apple", "green apple", "quantum"]), 2)
    assert neighbours.counts.tolist() == [1, 1, 0]
    assert neighbours.indices[2].tolist() == [-1, -1]


@pytest.mark.parametrize("texts", [["", ""], ["..."], ["one word"]])
def test_texts_without_words_and_single_texts_have_none(texts: list[str]) -> None:
    assert not nearest(embed(texts), 4).counts.any()


def test_fewer_than_one_neighbour_is_refused() -> None:
    with pytest.raises(InputError, match="ask for 1 or more"):
        nearest(np.eye(3), 0)


def test_prompt_texts_join_instruction_and_input() -> None:
    frame = pl.DataFrame({"instruction": ["add", "say"], "input": ["1 2", ""]})
    assert prompt_texts(frame) == ["add\n1 2", "say"]


def test_the_packaged_model_embeds_meaning() -> None:
    vectors = embed(["How old are you?", "What is your age?", "The cat sat.", " "], "minilm")
    assert vectors.dtype == np.float32 and vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert not vectors[3].any()
    assert nearest(vectors, 1).indices[0, 0] == 1


def test_an_embedder_that_is_not_there_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded"):
        embed(["a"], str(tmp_path / "empty"))
