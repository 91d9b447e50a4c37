from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

from delift_pipeline.scoring.model import LoadedModel, load_encoder, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import (
    Example,
    answer_losses,
    collate,
    encode_examples,
)


@pytest.fixture(scope="module")
def loaded(tiny: ModelOptions) -> LoadedModel:
    return load_model(tiny)


def by_hand(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """The loss of one example's answer tokens from a forward pass of that example alone."""
    ids = torch.from_numpy(np.concatenate([example.prompt, example.answer])).long()
    logits = cast(Any, model)(input_ids=ids[None]).logits[0].float()
    log_probabilities = functional.log_softmax(logits, dim=-1)
    first = len(example.prompt)
    positions = range(first, len(ids))
    return torch.stack([-log_probabilities[t - 1, ids[t]] for t in positions])


def test_answers_end_with_the_end_of_text_token(loaded: LoadedModel, records: pl.DataFrame) -> None:
    examples, encoded = encode_examples(loaded.encoder, records)
    assert [e.record_id for e in examples] == records["record_id"].to_list()
    assert not encoded.unscorable
    for example, row in zip(examples, records.iter_rows(named=True), strict=True):
        assert example.answer[-1] == loaded.tokenizer.eos_token_id
        assert example.prompt[0] == loaded.tokenizer.bos_token_id
        text = cast(str, loaded.tokenizer.decode(example.answer[:-1].tolist()))
        assert text.strip() == row["output"]


@pytest.mark.parametrize("template", ["plain", "paper", "world"])
def test_training_and_evaluation_read_the_tokens_that_are_scored(
    template: str, tiny: ModelOptions, records: pl.DataFrame
) -> None:
    encoder = load_encoder(tiny.model_copy(update={"template": template, "window": 64}))
    scored = encoder.encode(records)
    examples, _ = encode_examples(encoder, records)
    assert len(examples) == len(scored) == records.height
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(
            example.prompt, np.concatenate([scored.prefix(), scored.prompt(i)])
        )
        np.testing.assert_array_equal(example.answer, scored.answer(i))


def test_losses_equal_forward_passes_by_hand(loaded: LoadedModel, records: pl.DataFrame) -> None:
    examples, _ = encode_examples(loaded.encoder, records)
    with torch.no_grad():
        together = answer_losses(loaded.model, collate(examples))
        alone = torch.cat([by_hand(loaded.model, example) for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_loss_ignores_what_the_model_predicts_for_prompts(loaded: LoadedModel) -> None:
    """Logits at prompt positions carry no gradient; logits at answer positions do."""
    examples = [
        Example("a", np.array([1, 2, 3], dtype=np.int32), np.array([4, 5], dtype=np.int32)),
        Example("b", np.array([1, 2], dtype=np.int32), np.array([6], dtype=np.int32)),
    ]
    logits = torch.randn(2, 5, 9, requires_grad=True)

    class Fixed(torch.nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=logits)

    answer_losses(Fixed(), collate(examples)).sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=-1) > 0
    expected = torch.tensor([[False, False, True, True, False], [False, True, *[False] * 3]])
    assert torch.equal(touched, expected)


def test_padding_changes_no_loss(loaded: LoadedModel, records: pl.DataFrame) -> None:
    examples, _ = encode_examples(loaded.encoder, records)
    with torch.no_grad():
        padded = answer_losses(loaded.model, collate(examples, padding=7))
        other = answer_losses(loaded.model, collate(examples, padding=0))
    torch.testing.assert_close(padded, other, atol=1e-6, rtol=0)
