"""Texts read by the language model in batches: hidden states at the places that are wanted."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.scoring.batches import length_batches, padded
from delift_pipeline.scoring.decoder import Decoder

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder
    from delift_pipeline.selection.language_model import LanguageModel

BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_GPU = 65536

Reduced = Callable[[Decoder, torch.Tensor, torch.Tensor], torch.Tensor]
"""(decoder, hidden states [rows, tokens, width], lengths [rows]) -> values [rows, ...]."""


def read(
    model: "LanguageModel", sequences: Sequence[np.ndarray], reduce: Reduced, name: str
) -> np.ndarray:
    """One value a sequence, made from its hidden states on the model's device.

    Sequences of near lengths share a forward pass; batches are a function of the lengths alone. The
    sequences are token ids, int32, none empty. `name` is what the progress is called.

    Returns:
        float32 [sequences, ...], in the order given.
    """
    decoder, progress = Decoder(model.loaded.model), model.progress
    on_cpu = decoder.device.type == "cpu"
    limit = model.options.batch_tokens or (BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU)
    lengths = np.array([len(sequence) for sequence in sequences])
    found: dict[int, np.ndarray] = {}
    with progress.track(name, len(sequences), "records") as meter, torch.inference_mode():
        for rows in length_batches(lengths, lambda longest: limit // longest):
            ids = padded([sequences[row] for row in rows])[0].to(decoder.device)
            sizes = torch.from_numpy(lengths[rows]).to(decoder.device)
            values = reduce(decoder, decoder.hidden(ids, None), sizes).float().cpu().numpy()
            found.update(zip(rows.tolist(), values, strict=True))
            meter.advance(len(rows))
    return np.stack([found[row] for row in range(len(sequences))])


def text_tokens(encoder: "Encoder", texts: Sequence[str]) -> list[np.ndarray]:
    """Texts as plain text, whole, without template and markers."""
    return [np.asarray(one.ids, dtype=np.int32) for one in encoder.plain.encode(list(texts))]


def begin_of_text(encoder: "Encoder") -> np.ndarray:
    """The begin-of-text token, where the model has one, int32 [0 or 1]."""
    begin = encoder.tokenizer.bos_token_id
    return np.asarray([begin] if isinstance(begin, int) else [], dtype=np.int32)


def without_middle(tokens: np.ndarray, room: int) -> np.ndarray:
    """The tokens, cut in the middle where there are more than `room`, both ends kept."""
    if len(tokens) <= room:
        return tokens
    first = (room + 1) // 2
    return np.concatenate([tokens[:first], tokens[len(tokens) - (room - first) :]])


def position_weighted(decoder: Decoder, hidden: torch.Tensor, lengths: torch.Tensor) -> Any:
    """Mean of the hidden states weighted by position, [rows, width] of unit length.

    The weight of the t-th token (from 1) is t / (1 + ... + T): under a causal mask later tokens
    have read more (SGPT, Muennighoff 2022).
    """
    steps = torch.arange(1, hidden.shape[1] + 1, device=hidden.device, dtype=torch.float32)
    weights = steps * (steps <= lengths[:, None])
    weights = weights / weights.sum(dim=1, keepdim=True)
    means = torch.einsum("rt,rtw->rw", weights, hidden.float())
    return torch.nn.functional.normalize(means, dim=1)
