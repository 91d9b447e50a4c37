"""LoRA runs of any model that are trained together: each is the run that is trained alone."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import answer_losses, collate, encode_examples
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import TrainingRun, seed_torch
from delift_pipeline.training.setup import load_trainable
from delift_pipeline.training.stacked_layers import measure, train
from tests.conftest import save_tiny_model


def save_model(folder: Path, kind: str) -> ModelOptions:
    """A random Llama, or an OPT: with biases, layer norms and learned positions."""
    from transformers import OPTConfig, OPTForCausalLM

    save_tiny_model(folder)
    options = ModelOptions(model=str(folder), device="cpu")
    if kind == "opt":
        config = OPTConfig(
            vocab_size=load_model(options).model.config.vocab_size,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            init_std=0.1,
            dropout=0.0,
        )
        torch.manual_seed(1)
        OPTForCausalLM(config).save_pretrained(folder)
    return options


OPTIONS = TrainingOptions(
    rank=4, alpha=8, steps=6, batch_size=5, warmup_steps=2, learning_rate=5e-3, weight_decay=0.01
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained_alone(
    model: ModelOptions, records: pl.DataFrame, seed: int, options: TrainingOptions
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model after training as an arm does it, and its adapter matrices by layer, transposed."""
    with seed_torch(seed):
        trainable = load_trainable(options, model, None)
        examples = encode_examples(trainable.encoder, records)[0]
        TrainingRun(options, seed, trainable, examples).run_steps(SilentProgress(), None)
    adapted = cast(Any, trainable.model)
    return adapted, {
        name.removeprefix("base_model.model."): value.detach().t()
        for name, value in adapted.named_parameters()
        if value.requires_grad
    }


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_each_of_three_stacked_runs_is_the_run_that_is_trained_alone(
    tmp_path: Path, records: pl.DataFrame, kind: str
) -> None:
    model = save_model(tmp_path / kind, kind)
    loaded = load_model(model)
    parts, seeds = (records[:7], records[3:], records[:7]), (1, 2, 3)
    sets = [encode_examples(loaded.encoder, part)[0] for part in parts]
    lora = train(loaded.model, sets, seeds, OPTIONS)
    asked = encode_examples(loaded.encoder, records)[0]
    results = measure(lora, asked, tokens_at_once=50)
    for run, (part, seed) in enumerate(zip(parts, seeds, strict=True)):
        adapted, weights = trained_alone(model, part, seed, OPTIONS)
        assert len(weights) == 2 * len(lora.layers)
        for name, layer in lora.layers.items():
            for ours, theirs in ((layer.first, "lora_A"), (layer.second, "lora_B")):
                expected = weights[f"{name}.{theirs}.default.weight"]
                torch.testing.assert_close(ours[run].detach(), expected, atol=1e-5, rtol=1e-5)
        batch = collate(asked)
        with torch.no_grad():
            losses = answer_losses(adapted.eval(), batch)
        for row in range(len(asked)):
            own = float(losses[batch.rows == row].mean())
            assert results.loss[run, row] == pytest.approx(own, abs=1e-5)
    assert np.abs(results.loss[0] - results.loss[1]).max() > 1e-3


def test_one_run_answers_alone_and_the_model_gets_its_layers_back(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    loaded = load_model(tiny)
    model: Any = loaded.model
    examples = encode_examples(loaded.encoder, records)[0]
    batch = collate(examples)
    with torch.no_grad():
        before = answer_losses(model, batch)
    lora = train(model, [examples[:6], examples[6:]], [1, 2], OPTIONS)
    results = measure(lora, examples)
    for run in range(2):
        with lora.only(run), torch.no_grad():
            losses = answer_losses(model, batch)
        mean = float(losses[batch.rows == 3].mean())
        assert results.loss[run, 3] == pytest.approx(mean, abs=1e-5)
    lora.remove()
    with torch.no_grad():
        torch.testing.assert_close(answer_losses(model, batch), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_accumulation_and_epochs_give_the_run_that_is_trained_alone(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    options = OPTIONS.model_copy(
        update={"steps": None, "epochs": 2.5, "batch_size": 2, "accumulation": 2}
    )
    loaded = load_model(tiny)
    examples = encode_examples(loaded.encoder, records[:7])[0]
    lora = train(loaded.model, [examples, examples], [4, 4], options)
    _, weights = trained_alone(tiny, records[:7], 4, options)
    for name, layer in lora.layers.items():
        expected = weights[f"{name}.lora_B.default.weight"]
        torch.testing.assert_close(layer.second[1].detach(), expected, atol=1e-5, rtol=1e-5)


def test_training_lowers_the_loss_and_raises_the_accuracy(
    tiny: ModelOptions, records: pl.DataFrame
) -> None:
    loaded = load_model(tiny)
    examples = encode_examples(loaded.encoder, records)[0]
    options = OPTIONS.model_copy(update={"steps": 60, "learning_rate": 2e-2})
    few, many = (
        measure(train(loaded.model, [examples], [0], one), examples)
        for one in (OPTIONS.model_copy(update={"steps": 1}), options)
    )
    assert many.loss.mean() < few.loss.mean() - 0.5
    assert many.accuracy.mean() > few.accuracy.mean() + 0.2
    assert few.accuracy.min() >= 0 and many.accuracy.max() <= 1


def test_what_cannot_be_stacked_is_refused(tiny: ModelOptions, records: pl.DataFrame) -> None:
    loaded = load_model(tiny)
    examples = encode_examples(loaded.encoder, records)[0]
    with pytest.raises(InputError, match="without dropout"):
        train(loaded.model, [examples], [0], OPTIONS.model_copy(update={"dropout": 0.1}))
    epochs = OPTIONS.model_copy(update={"steps": None, "epochs": 1.0})
    with pytest.raises(ValueError, match="different lengths"):
        train(loaded.model, [examples, examples[:3]], [0, 0], epochs)
    with pytest.raises(InputError, match="Embedding"):
        named = OPTIONS.model_copy(update={"target_modules": ("embed_tokens",)})
        train(loaded.model, [examples], [0], named)
