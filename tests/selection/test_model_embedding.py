"""Embeddings by the language model's hidden states."""

import numpy as np
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.embedding import embed_texts
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.stages.arms import PlanOptions


def test_hidden_states_have_unit_length_and_do_not_depend_on_company(home: Home) -> None:
    model = LanguageModel(ModelOptions(model="demo", template="world", threads=1), home)
    texts = ["strap belt", "", "black rope black rope", "strap belt"]
    found = embed_texts(texts, "model", model)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 0, 1, 1], abs=1e-5)
    assert found[0] == pytest.approx(found[3], abs=1e-5)
    assert abs(float(found[0] @ found[2])) < 0.9999
    assert embed_texts(texts[:1], "model", model)[0] == pytest.approx(found[0], abs=1e-5)
    assert not embed_texts(["", ""], "model", model).any()


def test_without_a_model_it_is_refused() -> None:
    with pytest.raises(InputError, match="no language model"):
        embed_texts(["a"], "model", None)
    with pytest.raises(ValueError, match="planned without the model"):
        PlanOptions(embedder="model")
