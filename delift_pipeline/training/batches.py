"""Make padded batches of encoded records, and compute the loss on their answer tokens.

Training and evaluation share these functions and the scoring encoder, so all three see the same
tokens: head, prompt and answer with its end-of-text token, without a demonstration.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl
import torch
from torch.nn import functional

from delift_pipeline.scoring.batches import pad_sequences

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import EncodedRecords, Encoder


@dataclass(frozen=True)
class Example:
    """One record's tokens.

    Attributes:
        prompt: Head and prompt, int32.
        answer: The answer and its end-of-text token, int32.
    """

    record_id: str
    prompt: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right to one width.

    Attributes:
        input_ids: Token ids, `[examples, width]`.
        attention_mask: 1 on tokens, 0 on padding, `[examples, width]`.
        rows: The example of each answer token, `[answer tokens]`.
        columns: The position whose logits predict that answer token, `[answer tokens]`.
        labels: The answer tokens, `[answer tokens]`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on a device."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def encode_examples(
    encoder: "Encoder", records: pl.DataFrame
) -> tuple[list[Example], "EncodedRecords"]:
    """Return the tokens of the scorable records in the frame's order, and all encoded records.

    The encoded records say which records cannot be scored and which texts were cut.
    """
    encoded = encoder.encode(records)
    head = np.asarray(encoder.head, dtype=np.int32)
    examples = [
        Example(record_id, np.concatenate([head, encoded.prompt(i)]), encoded.answer(i))
        for i, record_id in enumerate(encoded.ids)
    ]
    return examples, encoded


def target_cuts(encoded: "EncodedRecords") -> dict[str, int]:
    """Return how many texts of targets were cut, by kind; training uses no demonstrations."""
    return {kind: count for kind, count in encoded.cuts.items() if kind.startswith("target_")}


def collate(examples: Sequence[Example], padding: int = 0) -> Batch:
    """Pad examples on the right and mark the positions that predict their answer tokens."""
    ids, mask = pad_sequences([np.concatenate([e.prompt, e.answer]) for e in examples], padding)
    rows = [np.full(len(e.answer), row) for row, e in enumerate(examples)]
    columns = [np.arange(len(e.prompt) - 1, len(e) - 1) for e in examples]
    labels = [e.answer.astype(np.int64) for e in examples]
    flat = (torch.from_numpy(np.concatenate(part)) for part in (rows, columns, labels))
    return Batch(ids, mask, *flat)


def answer_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the negative log-probability of every answer token, nats, float32, `[answer tokens]`.

    Logits are computed only at positions that predict an answer token. With a vocabulary of
    100,000 tokens the others would take most of the memory.
    """
    columns, column = torch.unique(batch.columns, return_inverse=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "logits_to_keep" in inspect.signature(type(unwrap_model(model)).forward).parameters:
        logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, columns]
    picked = logits[batch.rows, column].float()
    return functional.cross_entropy(picked, batch.labels, reduction="none")


def unwrap_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the base model without its PEFT adapters; a model without adapters is returned."""
    get_base_model = getattr(model, "get_base_model", None)
    return cast(torch.nn.Module, get_base_model()) if callable(get_base_model) else model
