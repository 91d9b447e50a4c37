"""LoRA runs that are trained together: each is the run that PEFT does alone."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks.pools import MODEL, Sizes, draw_pool
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate_model
from delift_pipeline.scoring.model import load_model
from delift_pipeline.training import stacked as stacked_module
from delift_pipeline.training.batches import encode_examples
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.run import TrainingRun
from delift_pipeline.training.setup import load_trainable
from delift_pipeline.training.stacked import (
    StackedLora,
    measure,
    stack_batches,
    step_losses,
    train,
    write_weights,
)

TINY = Sizes(pool=40, heldout_per_task=2, target=4)
OPTIONS = TrainingOptions(preset="demo", steps=4)
PROJECTIONS = {
    name: f"self_attn.{name}" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else f"mlp.{name}"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_stacked_run_is_the_run_that_peft_does_alone() -> None:
    trainable = load_trainable(OPTIONS, MODEL, None)
    pool = draw_pool("instruction_tuning", 700, 0.15, TINY).pool
    examples = encode_examples(trainable.encoder, pool)[0]
    base = cast(Any, trainable.model).base_model.model
    lora = StackedLora(base, [0, 0], OPTIONS, start=_plain(base))
    for number, layer in enumerate(lora.adapters):
        for name, pair in layer.items():
            module = base.model.layers[number].get_submodule(PROJECTIONS[name])
            with torch.no_grad():
                pair[0].copy_(module.lora_A["default"].weight.t().expand(2, -1, -1))
    other = TrainingRun(OPTIONS, 5, trainable, examples)
    other.run_steps(SilentProgress(), None)
    losses = _losses(lora, examples, OPTIONS, seed=5)
    np.testing.assert_allclose(losses[:, 0], other.done.losses, rtol=2e-5)
    np.testing.assert_allclose(losses[:, 1], other.done.losses, rtol=2e-5)
    for number, layer in enumerate(lora.adapters):
        for name, pair in layer.items():
            module = base.model.layers[number].get_submodule(PROJECTIONS[name])
            for part, theirs in zip(pair, (module.lora_A, module.lora_B), strict=True):
                mine = part.detach()[0].t()
                torch.testing.assert_close(mine, theirs["default"].weight, atol=2e-4, rtol=1e-2)


def _plain(base: Any) -> list[dict[str, torch.Tensor]]:
    return [
        {
            name: layer.get_submodule(where).base_layer.weight.detach().t()
            for name, where in PROJECTIONS.items()
        }
        for layer in base.model.layers
    ]


def _losses(lora: StackedLora, examples: Any, options: TrainingOptions, seed: int) -> np.ndarray:
    """What `train` does, with its losses kept."""
    found: list[list[float]] = []

    def kept(own: StackedLora, stack: Any) -> torch.Tensor:
        losses = step_losses(own, stack)
        found.append(losses.tolist())
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked_module, "StackedLora", lambda *args: lora)
        patch.setattr(stacked_module, "step_losses", kept)
        train(cast(Any, None), [examples, examples], [seed, seed], options)
    lora.merged_weights = None
    return np.array(found)


def test_runs_do_not_touch_each_other() -> None:
    loaded = load_model(MODEL)
    model = cast(Any, loaded.model)
    drawn = draw_pool("instruction_tuning", 700, 0.15, TINY)
    examples = encode_examples(loaded.encoder, drawn.pool)[0]
    asked = encode_examples(loaded.encoder, drawn.heldout[""])[0]
    both = measure(train(model, [examples[:8], examples[8:30]], [1, 2], OPTIONS), asked)
    alone = measure(train(model, [examples[8:30]], [2], OPTIONS), asked)
    np.testing.assert_allclose(both.loss[1], alone.loss[0], rtol=1e-3)
    assert both.exact.shape == (2, len(asked)) and both.loss.min() >= 0


def test_padding_changes_nothing() -> None:
    loaded = load_model(MODEL)
    pool = draw_pool("instruction_tuning", 700, 0, TINY).pool
    examples = encode_examples(loaded.encoder, pool)[0]
    lora = StackedLora(cast(Any, loaded.model), [0, 1], OPTIONS)
    longest, shortest = max(examples, key=len), min(examples, key=len)
    mixed = step_losses(lora, stack_batches([[longest, shortest], [shortest]]))
    alone = step_losses(lora, stack_batches([[shortest]] * 2)).tolist()
    assert mixed.tolist()[1] == pytest.approx(alone[1])


def test_a_run_answers_as_the_model_with_its_weights_generates() -> None:
    loaded, other = load_model(MODEL), load_model(MODEL)
    drawn = draw_pool("instruction_tuning", 700, 0.0, Sizes(pool=60, heldout_per_task=3, target=4))
    pool = encode_examples(loaded.encoder, drawn.pool)[0]
    heldout = encode_examples(loaded.encoder, drawn.heldout[""])[0]
    options = TrainingOptions(preset="demo", steps=60)
    lora = train(cast(Any, loaded.model), [pool[:30], pool[20:]], [1, 2], options)
    exact = measure(lora, heldout).exact
    assert 0 < exact.sum() < exact.size
    for run, own in enumerate(exact):
        write_weights(cast(Any, other.model), lora.merge(), run)
        asked = EvaluationOptions(metrics=("exact_match",))
        samples = evaluate_model(other, drawn.heldout[""], asked).samples
        right = dict(zip(samples["record_id"], samples["exact_match"], strict=True))
        assert [right[example.record_id] == 1 for example in heldout] == own.tolist()
