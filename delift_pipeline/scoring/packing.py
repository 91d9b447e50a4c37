"""Many prefixes with all their targets in one flat sequence, and the attention over it.

A batch is laid out as all prefixes, then the targets of the first prefix, those of the second, and
so on. A token attends causally to its own segment; a target also attends to the whole of its
prefix, and its positions go on where the prefix ends. One forward pass of the model's own layers
serves every pair of the batch, whatever their number and shape.

The model reaches this attention through the attention interface of transformers, so a family
of models needs no code here. The two parts of a target's attention, to itself and to its prefix,
become one by their log-sum-exp, which is exact (Hydragen, arXiv 2402.05099).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.layers import attend

ATTENTION = "delift_packed"
"""Its name in the attention interface of transformers."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Segments:
    """Sequences end to end.

    Attributes:
        starts: Where each begins, and the end, int32 [segments + 1].
        longest: Tokens of the longest.
    """

    starts: torch.Tensor
    longest: int


@dataclass(frozen=True)
class PackedPairs:
    """One flat sequence of prefixes and their targets.

    Attributes:
        ids: Input ids, int64 [tokens]. The last answer token of a target is left out: nothing is
            predicted after it.
        positions: Each token's position in its own pair, int64 [tokens].
        predicting: Tokens that predict an answer token, int64 [answers].
        answers: The true answer tokens, int64 [answers].
        prefix_tokens: How many tokens the prefixes have together; they come first.
        segments: Every prefix, then every target.
        targets: The targets of each prefix together, counted from the first target.
        prefixes: The prefixes.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    predicting: torch.Tensor
    answers: torch.Tensor
    prefix_tokens: int
    segments: Segments
    targets: Segments
    prefixes: Segments


def split_jobs(
    records: EncodedRecords, jobs: Sequence[Job], tokens: int
) -> Iterator[list[tuple[int, slice]]]:
    """Batches of at most `tokens` tokens, as (job, which of its rows); in order.

    A job that does not fit is cut, and its prefix stands in both batches. A batch has at least one
    target.
    """
    batch: list[tuple[int, slice]] = []
    room = tokens
    lengths = np.diff(records.target_starts) - 1
    for place, job in enumerate(jobs):
        ends, start = np.cumsum(lengths[job.rows]), 0
        while start < len(ends):
            used = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, used + room - len(job.prefix), side="right"))
            if stop > start or not batch:
                stop = max(stop, start + 1)
                batch.append((place, slice(start, stop)))
                room -= len(job.prefix) + int(ends[stop - 1]) - used
                start = stop
            if start < len(ends):
                yield batch
                batch, room = [], tokens
    if batch:
        yield batch


def pack_pairs(records: EncodedRecords, jobs: Sequence[Job], device: torch.device) -> PackedPairs:
    """Lay out jobs with at least one target each, without a loop over targets."""
    rows = np.concatenate([job.rows for job in jobs])
    before = np.asarray([len(job.prefix) for job in jobs])
    counts = np.asarray([len(job.rows) for job in jobs])
    prompts, answers = records.prompt_lengths[rows], records.answer_lengths[rows]
    lengths = (prompts + answers - 1).astype(np.int64)
    # Place of each target's first token in the flat sequence and in the records' tokens.
    first = before.sum() + np.cumsum(lengths) - lengths
    source = records.target_starts[rows]
    inside = _steps(lengths)
    ids = records.target_tokens[np.repeat(source, lengths) + inside]
    positions = inside + np.repeat(np.repeat(before, counts), lengths)
    answered = _steps(answers)
    predicting = np.repeat(first + prompts - 1, answers) + answered
    true = records.target_tokens[np.repeat(source + prompts, answers) + answered]
    of_job = np.add.reduceat(lengths, np.cumsum(counts) - counts)

    def put(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array.astype(np.int64))
        return (
            tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
        )

    def segments(sizes: np.ndarray) -> Segments:
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return Segments(put(starts).to(torch.int32), int(sizes.max()))

    return PackedPairs(
        ids=put(np.concatenate([*(job.prefix for job in jobs), ids])),
        positions=put(np.concatenate([_steps(before), positions])),
        predicting=put(predicting),
        answers=put(true),
        prefix_tokens=int(before.sum()),
        segments=segments(np.concatenate([before[before > 0], lengths])),
        targets=segments(of_job),
        prefixes=segments(before),
    )


def _steps(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... within each of several sequences, end to end, int64 [sum of lengths]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


_running: list[PackedPairs] = []
"""The batch whose forward pass is running; the layers of a model do not hand it through."""


@contextmanager
def packed_attention(model: Any, pairs: PackedPairs) -> Iterator[None]:
    """Make the layers of a model attend as a packed batch asks."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    before = [(config, config._attn_implementation) for config in configs.values()]
    _running.append(pairs)
    try:
        for config, _ in before:
            config._attn_implementation = ATTENTION
        yield
    finally:
        _running.pop()
        for config, name in before:
            config._attn_implementation = name


@torch.library.custom_op("delift::packed_attention", mutates_args=())
def _attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of the running batch; [1, heads, tokens, width] in, [1, tokens, heads, width] out.

    A custom operation, so that the compiler takes it as one and does not look at the batch.
    """
    pairs = _running[-1]
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    flash = query.is_cuda and query.dtype in HALF
    out, lse = (_attend_flash if flash else _attend_padded)(
        query, key, value, pairs.segments, pairs.segments, scale, causal=True
    )
    if first := pairs.prefix_tokens:
        before, before_lse = (_attend_flash if flash else _attend_by_prefix)(
            query[first:], key[:first], value[:first], pairs.targets, pairs.prefixes, scale
        )
        weight = torch.sigmoid(lse[:, first:] - before_lse)
        # A kernel may call the log-sum-exp of no keys plus or minus infinity.
        weight = weight.masked_fill(before_lse.isinf(), 1).transpose(0, 1)[..., None]
        out[first:] = torch.lerp(before, out[first:], weight.to(out.dtype))
    return out[None]


@_attend_packed.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    rows, heads, tokens, width = query.shape
    return query.new_empty(rows, tokens, heads, width)


def _attention_interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Raises:
        ValueError: the layer asks for more than plain attention.
    """
    extras = [name for name in ("softcap", "s_aux", "sliding_window") if options.get(name)]
    if extras:
        raise ValueError(f"its attention has {' and '.join(extras)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend_packed(query, key, value, scale), None


def _attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Segments,
    keys: Segments,
    scale: float,
    *,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each segment of queries to the segment of keys at the same place.

    Queries are [queries, heads, width], keys and values [keys, key heads, width]. Returns the mix
    of values [queries, heads, width] and the log-sum-exp of scores, float32 [heads, queries].
    """
    lengths = (queries.starts, keys.starts, queries.longest, keys.longest)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, *lengths, 0.0, causal, False, scale=scale
    )
    return out, lse


def _attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Segments,
    keys: Segments,
    scale: float,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_attend_flash` of segments to themselves, for float32 and other devices.

    Segments become rows of one length.
    """
    starts = queries.starts.to(torch.int64)
    lengths = starts.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=query.device), lengths)
    column = torch.arange(len(query), device=query.device) - starts[row]
    groups = query.shape[1] // key.shape[1]

    def rows(part: torch.Tensor) -> torch.Tensor:
        cells = part.new_zeros(len(lengths), queries.longest, *part.shape[1:])
        cells[row, column] = part
        return cells.transpose(1, 2)

    shared = (rows(part.repeat_interleave(groups, dim=1)) for part in (key, value))
    out, lse = attend(rows(query), *shared, scale=scale, causal=causal)
    return out.transpose(1, 2)[row, column], lse.transpose(1, 2)[row, column].T


def _attend_by_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Segments,
    keys: Segments,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_attend_flash` of all targets of a prefix together, one prefix after the other."""
    groups = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    lse = query.new_full((query.shape[1], len(query)), -torch.inf, dtype=torch.float32)
    bounds = (pairwise(segments.starts.tolist()) for segments in (queries, keys))
    for (start, stop), (first, last) in zip(*bounds, strict=True):
        if first < last:
            own = query[start:stop].transpose(0, 1)[None]
            shared = (
                part[first:last].transpose(0, 1).repeat_interleave(groups, dim=0)[None]
                for part in (key, value)
            )
            part = attend(own, *shared, scale=scale)
            out[start:stop], lse[:, start:stop] = part.out[0].transpose(0, 1), part.lse[0]
    return out, lse


def _no_mask(*_: object, **__: object) -> None:
    """The batch itself says who sees whom."""


AttentionInterface.register(ATTENTION, _attention_interface)
AttentionMaskInterface.register(ATTENTION, _no_mask)
