from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
import torch
from peft import get_peft_model

from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import Example, answer_losses, collate, encode_examples
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import train
from delift_pipeline.training.setup import load_trainable, lora_config

bnb = cast(Any, pytest.importorskip("bitsandbytes"))
pytestmark = [pytest.mark.slow, pytest.mark.data]

OPTIONS = TrainingOptions(method="qlora", rank=4, steps=5, learning_rate=5e-3)


@pytest.fixture
def model_options(stories: Path) -> ModelOptions:
    return ModelOptions(model=str(stories), device="cpu")


@pytest.fixture
def stories_records(shared_data: Path) -> pl.DataFrame:
    return read_records(shared_data / "gsm8k" / "train.jsonl").frame.head(12)


def dequantised(model_options: ModelOptions, quantised: torch.nn.Module) -> torch.nn.Module:
    """The base model in float32 with the values that the 4-bit weights stand for."""
    reference, layers = load_model(model_options).model, dict(quantised.named_modules())
    for name, module in reference.named_modules():
        layer = cast(Any, layers.get(name))
        layer = getattr(layer, "base_layer", layer)
        if isinstance(layer, bnb.nn.Linear4bit):
            packed = layer.weight
            values = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
            cast(torch.nn.Linear, module).weight.data = values.float()
    return reference


def gradients(model: torch.nn.Module, examples: list[Example]) -> dict[str, torch.Tensor]:
    model.train()
    answer_losses(model, collate(examples)).mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_equal_those_on_dequantised_weights(
    model_options: ModelOptions, stories_records: pl.DataFrame
) -> None:
    trainable = load_trainable(OPTIONS, model_options, None)
    examples, _ = encode_examples(trainable.encoder, stories_records)
    ours = {n: p for n, p in trainable.model.named_parameters() if p.requires_grad}
    for name, value in ours.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    base = dequantised(model_options, cast(Any, trainable.model).get_base_model())
    reference = get_peft_model(cast(Any, base), lora_config(OPTIONS))
    with torch.no_grad():
        for name, value in reference.named_parameters():
            if value.requires_grad:
                value.copy_(ours[name])
    found, expected = gradients(trainable.model, examples), gradients(reference, examples)
    assert set(found) == set(expected) == set(ours)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


def test_an_adapter_is_trained_and_evaluated_on_the_unquantised_base(
    model_options: ModelOptions, stories_records: pl.DataFrame, tmp_path: Path
) -> None:
    log = train(OPTIONS, model_options, stories_records, 0, tmp_path)
    assert log.loss_fell
    asked = EvaluationOptions(metrics=("answer_loss",))
    before = evaluate(model_options, None, stories_records, asked).metrics["answer_loss"]
    after = evaluate(model_options, tmp_path, stories_records, asked).metrics["answer_loss"]
    assert after < before
