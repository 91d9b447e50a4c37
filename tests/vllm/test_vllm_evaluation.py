"""Evaluation by vLLM says what evaluation by transformers says. Run by `make test-vllm`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.engines import VllmModel, load_for_evaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.result import Evaluation
from delift_pipeline.evaluation.run import evaluate, evaluate_in_context
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
BOUND = 1e-4
Made = Callable[..., pl.DataFrame]
ASKED = EvaluationOptions(metrics=("answer_loss", "exact_match", "rouge1"), max_new_tokens=12)
BY_VLLM = ASKED.model_copy(update={"engine": "vllm"})


@pytest.fixture(scope="module")
def heldout(made_up: Made) -> pl.DataFrame:
    frame = made_up(14).with_columns(
        source=pl.lit("test"),
        task=pl.lit("words"),
        copies=1,
        source_ids=pl.concat_list("record_id"),
    )
    return frame.select(pl.col(name).cast(kind) for name, kind in RECORD_SCHEMA.items())


def same(ours: Evaluation, theirs: Evaluation) -> None:
    """The same answers to the letter, the same losses within the bound."""
    assert ours.details["engine"] == "vllm" and theirs.details["engine"] == "transformers"
    assert ours.samples["generated"].to_list() == theirs.samples["generated"].to_list()
    gap = (ours.samples["answer_loss"] - theirs.samples["answer_loss"]).abs().max()
    assert isinstance(gap, float) and gap <= BOUND
    assert ours.counts == theirs.counts


def test_greedy_answers_and_losses_are_those_of_transformers(
    asked: ModelOptions, heldout: pl.DataFrame
) -> None:
    theirs = evaluate(asked, None, heldout, ASKED)
    assert theirs.samples["generated"].n_unique() > 3
    same(evaluate(asked, None, heldout, BY_VLLM), theirs)


def test_the_models_engine_is_taken_where_evaluation_names_none(
    asked: ModelOptions, heldout: pl.DataFrame
) -> None:
    by_vllm = asked.model_copy(update={"engine": "vllm"})
    assert evaluate(by_vllm, None, heldout.head(3), ASKED).details["engine"] == "vllm"
    own = ASKED.model_copy(update={"engine": "transformers"})
    assert evaluate(by_vllm, None, heldout.head(3), own).details["engine"] == "transformers"


def test_an_adapter_changes_the_answers_as_under_transformers(
    asked: ModelOptions, heldout: pl.DataFrame, tmp_path: Path
) -> None:
    adapter = saved_adapter(asked, tmp_path / "adapter")
    theirs = evaluate(asked, adapter, heldout, ASKED)
    base = evaluate(asked, None, heldout, ASKED)
    assert theirs.samples["generated"].to_list() != base.samples["generated"].to_list()
    same(evaluate(asked, adapter, heldout, BY_VLLM), theirs)


def saved_adapter(asked: ModelOptions, folder: Path) -> Path:
    """A LoRA on all linear layers, with weights that change answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(load_model(asked).model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.05)
    model.save_pretrained(str(folder))
    return folder


def test_a_whole_trained_model_is_loaded_from_its_folder(
    asked: ModelOptions, heldout: pl.DataFrame, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    loaded = load_model(asked)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.1)
    loaded.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(asked.model).save_pretrained(tmp_path)
    base, theirs = (evaluate(asked, place, heldout, ASKED) for place in (None, tmp_path))
    assert theirs.metrics["answer_loss"] != base.metrics["answer_loss"]
    same(evaluate(asked, tmp_path, heldout, BY_VLLM), theirs)


def test_demonstrations_stand_before_the_questions(
    asked: ModelOptions, heldout: pl.DataFrame
) -> None:
    chosen, questions = heldout.head(6), heldout.tail(8)
    shown = ASKED.model_copy(update={"in_context": 2, "embedder": "tfidf"})
    by_vllm = shown.model_copy(update={"engine": "vllm"})
    ours, theirs = (
        evaluate_in_context(load_for_evaluation(asked, None, one), chosen, questions, one)
        for one in (by_vllm, shown)
    )
    assert ours.details["demonstrations"]["shown_mean"] > 1
    same(ours, theirs)


def test_sampled_answers_are_those_of_their_seed(
    asked: ModelOptions, heldout: pl.DataFrame
) -> None:
    sampled = BY_VLLM.model_copy(update={"generation": "paper", "max_new_tokens": 40})
    first, again, other = (
        evaluate(asked, None, heldout, sampled.model_copy(update={"seed": seed}))
        for seed in (0, 0, 1)
    )
    assert first.samples["generated"].to_list() == again.samples["generated"].to_list()
    assert first.samples["generated"].to_list() != other.samples["generated"].to_list()


def test_an_adapter_on_the_head_is_refused_with_the_other_engine(
    asked: ModelOptions, heldout: pl.DataFrame, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(load_model(asked).model, config).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="use engine transformers"):
        evaluate(asked, tmp_path, heldout, BY_VLLM)


def test_no_weights_are_held_beside_vllms(asked: ModelOptions) -> None:
    loaded = load_for_evaluation(asked, None, BY_VLLM)
    assert isinstance(loaded, VllmModel)
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}
