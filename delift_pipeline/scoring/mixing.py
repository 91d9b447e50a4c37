"""Attention of packed targets to their prefixes and to themselves, in two ways.

`SplitMixing` uses the device's attention kernel twice and puts the parts together by their
log-sum-exp: right everywhere. `JointMixing` is one softmax over prefix and own keys made of plain
products; in bfloat16 on a CPU it takes little more than half the time of the kernel there.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from delift_pipeline.scoring.attention import Part, attend, merged
from delift_pipeline.scoring.packed import Packed

LOG2_E = 1.4426950408889634
CHUNK_SCORES = 1 << 20
"""Attention scores made at a time: few enough to stay in a CPU's cache."""
OWN_STEP = 64
"""Queries whose own keys are read together: keys that none of them may see are skipped."""
LEAST_SUM, LARGEST_SUM = 2.0**-80, 2.0**100
"""Sums of exponentials between these lose no digit in bfloat16 or float32."""


class Heads(NamedTuple):
    """Queries, keys and values of tokens, [tokens, heads, width] (fewer heads for the last two)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


Keys = tuple[torch.Tensor, torch.Tensor] | None
"""Keys and values of one prefix in one layer, [tokens, key heads, width] each; None without one."""


class Mixing(Protocol):
    """A way to attend."""

    def mixed(self, own: Heads, batch: Packed, keys: Sequence[Keys], scale: float) -> torch.Tensor:
        """Attention of every token to its prefix and to the tokens before it, itself included.

        Args:
            own: The batch's heads.
            batch: The targets.
            keys: Of the prefix of each of the batch's segments.
            scale: Factor of the scores.

        Returns:
            [tokens, heads, width].
        """
        ...

    def sound(self) -> bool:
        """Whether everything mixed since the last question can be believed."""
        ...


class SplitMixing:
    """The device's kernel on prefix and own keys apart."""

    def mixed(self, own: Heads, batch: Packed, keys: Sequence[Keys], scale: float) -> torch.Tensor:
        """As `Mixing.mixed`."""
        query, key, value = (rows_of(picked(part, batch.spread), batch.rows) for part in own)
        groups = query.shape[1] // key.shape[1]
        key, value = repeated(key, groups, 1), repeated(value, groups, 1)
        part = attend(query, key, value, scale=scale, causal=True)
        return _joined(own.query, part, batch.gather, keys, batch.segments, scale)

    def asked(self, own: Heads, batch: Packed, keys: Sequence[Keys], scale: float) -> torch.Tensor:
        """Attention of the tokens that predict an answer token, whose queries alone are given.

        Returns:
            [answers, heads, width].
        """
        query = rows_of(picked(own.query, batch.asked), batch.rows)
        key, value = (rows_of(picked(part, batch.spread), batch.rows) for part in own[1:])
        groups = query.shape[1] // key.shape[1]
        key, value = repeated(key, groups, 1), repeated(value, groups, 1)
        part = attend(query, key, value, scale=scale, mask=batch.mask(query.dtype))
        return _joined(own.query, part, batch.asked_back, keys, batch.asked_segments, scale)

    def sound(self) -> bool:
        """Always."""
        return True


class JointMixing:
    """One softmax over prefix and own keys, without the search for its largest score.

    Exponentials are to base 2 and nothing is taken from the scores, which is exact as long as sums
    stay in range; `sound` says whether they did. Both parts add to one numerator and one sum.
    """

    def __init__(self) -> None:
        self._least, self._largest = float("inf"), 0.0

    def mixed(self, own: Heads, batch: Packed, keys: Sequence[Keys], scale: float) -> torch.Tensor:
        """As `Mixing.mixed`."""
        groups = own.query.shape[1] // own.key.shape[1]
        value, total = self._own(own, batch, groups, scale * LOG2_E)
        value, total = picked(value, batch.gather), picked(total, batch.gather)
        for (start, stop), prefix in zip(batch.segments, keys, strict=True):
            if prefix is not None:
                into = (value[start:stop], total[start:stop])
                self._add_prefix(own.query[start:stop], prefix, into, scale * LOG2_E)
        least, largest = torch.aminmax(total)
        self._least = min(self._least, float(least))
        self._largest = max(self._largest, float(largest))
        return value.div_(total[..., None])

    def sound(self) -> bool:
        """Whether no sum left the range since the last question."""
        found = self._least >= LEAST_SUM and self._largest <= LARGEST_SUM
        self._least, self._largest = float("inf"), 0.0
        return found

    def _own(
        self, own: Heads, batch: Packed, groups: int, factor: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Numerators [rows * width, heads, head width] and sums [rows * width, heads]."""
        query, key, value = (
            repeated(rows_of(picked(part, batch.spread), batch.rows), times, 1).flatten(0, 1)
            for part, times in zip(own, (1, groups, groups), strict=True)
        )
        shape = (batch.rows, batch.width, own.query.shape[1])
        found = query.new_empty(*shape, own.query.shape[2])
        total = query.new_empty(shape, dtype=torch.float32)
        for start in range(0, batch.width, OWN_STEP):
            stop = min(start + OWN_STEP, batch.width)
            scores = _powers(query[:, start:stop], key[:, :stop], factor)
            scores[:, :, start:].tril_()
            sums = scores.sum(-1).unflatten(0, (batch.rows, -1))
            mixed = torch.bmm(scores, value[:, :stop]).unflatten(0, (batch.rows, -1))
            found[:, start:stop], total[:, start:stop] = mixed.transpose(1, 2), sums.transpose(1, 2)
        return found.flatten(0, 1), total.flatten(0, 1)

    def _add_prefix(
        self,
        query: torch.Tensor,
        keys: tuple[torch.Tensor, torch.Tensor],
        into: tuple[torch.Tensor, torch.Tensor],
        factor: float,
    ) -> None:
        heads = query.shape[1]
        key, value = (repeated(part, heads // part.shape[1], 1).transpose(0, 1) for part in keys)
        step = max(CHUNK_SCORES // (heads * key.shape[1]), 1)
        for start in range(0, len(query), step):
            scores = _powers(query[start : start + step].transpose(0, 1), key, factor)
            into[1][start : start + step] += scores.sum(-1).T
            into[0][start : start + step] += torch.bmm(scores, value).transpose(0, 1)


def _powers(query: torch.Tensor, key: torch.Tensor, factor: float) -> torch.Tensor:
    """2^(factor * query . key), [batch, queries, keys]."""
    shape = (query.shape[0], query.shape[1], key.shape[1])
    nothing = query.new_empty(1).expand(shape)
    return torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=factor).exp2_()


def _joined(
    query: torch.Tensor,
    part: Part,
    back: torch.Tensor | None,
    keys: Sequence[Keys],
    segments: Sequence[tuple[int, int]],
    scale: float,
) -> torch.Tensor:
    """A batch's own part and the prefixes' parts as one, [queries, heads, width]."""
    heads, width = query.shape[1:]
    out = picked(part.out.transpose(1, 2).reshape(-1, heads, width), back)
    lse = picked(part.lse.transpose(1, 2).reshape(-1, heads), back)
    parts = []
    for (start, stop), prefix in zip(segments, keys, strict=True):
        if prefix is None:
            parts.append(out[start:stop])
            continue
        key, value = (rows_of(repeated(each, heads // each.shape[1], 1), 1) for each in prefix)
        before = attend(rows_of(query[start:stop], 1), key, value, scale=scale)
        first, first_lse = before.out[0].transpose(0, 1), before.lse[0].transpose(0, 1)
        parts.append(merged(first, first_lse, out[start:stop], lse[start:stop]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def picked(tensor: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """The tensor's rows at `places`; all of them for None."""
    return tensor if places is None else tensor.index_select(0, places)


def rows_of(part: torch.Tensor, rows: int) -> torch.Tensor:
    """[rows * tokens, heads, width] as [rows, heads, tokens, width]."""
    return part.view(rows, -1, *part.shape[1:]).transpose(1, 2)


def repeated(part: torch.Tensor, times: int, dim: int) -> torch.Tensor:
    """Every key head once for each query head that reads it."""
    return part if times == 1 else part.repeat_interleave(times, dim=dim)
