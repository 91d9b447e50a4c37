"""Attention of packed targets to their prefixes and to themselves, in two ways.

`SplitMixing` uses the device's attention kernel twice and puts the parts together by their
log-sum-exp: right everywhere. `JointMixing` is one softmax over prefix and own keys made of plain
products; on a CPU it takes little more than half the time of the kernel in bfloat16, and for short
targets in float32 as well.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch

from delift_pipeline.scoring.attention import attend, merged
from delift_pipeline.scoring.packed import Packed, Segments

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


class Own(NamedTuple):
    """What queries take from the tokens of their own target, before anything of a prefix.

    Attributes:
        query: [queries, heads, width].
        out: [queries, heads, width], as its mixing keeps it.
        weight: float32 [queries, heads], what it takes to add a prefix to it.
    """

    query: torch.Tensor
    out: torch.Tensor
    weight: torch.Tensor


class Mixing(Protocol):
    """A way to attend.

    Attributes:
        widest: Tokens of the longest target that it is meant for.
    """

    widest: float

    def own(self, heads: Heads, batch: Packed, scale: float, *, asked: bool) -> Own:
        """Attention of tokens to those before them in their target, themselves included.

        Args:
            heads: The batch's heads.
            batch: The targets.
            scale: Factor of the scores.
            asked: Whether the queries are those of `batch.at` alone.
        """
        ...

    def joined(
        self, own: Own, keys: Sequence[Keys], segments: Segments, scale: float
    ) -> torch.Tensor:
        """Attention to a prefix and to the own target together, [queries, heads, width].

        Args:
            own: The own part; left as it is.
            keys: Of the prefix of each segment.
            segments: First query of each and the one after its last.
            scale: Factor of the scores.
        """
        ...

    def sound(self) -> bool:
        """Whether everything mixed since the last question can be believed."""
        ...


class SplitMixing:
    """The device's kernel on prefix and own keys apart."""

    widest = float("inf")

    def own(self, heads: Heads, batch: Packed, scale: float, *, asked: bool) -> Own:
        """As `Mixing.own`; `weight` is the log-sum-exp of the scores."""
        query, key, value = in_rows(heads, batch, asked=asked)
        mask = batch.mask(query.dtype) if asked else None
        part = attend(query, key, value, scale=scale, causal=not asked, mask=mask)
        out, weight = part.out.transpose(1, 2).flatten(0, 1), part.lse.transpose(1, 2).flatten(0, 1)
        back = batch.asked_back if asked else batch.gather
        return Own(heads.query, picked(out, back), picked(weight, back))

    def joined(
        self, own: Own, keys: Sequence[Keys], segments: Segments, scale: float
    ) -> torch.Tensor:
        """As `Mixing.joined`."""
        heads, parts = own.query.shape[1], []
        for (start, stop), prefix in zip(segments, keys, strict=True):
            query, out, weight = (part[start:stop] for part in own)
            if prefix is None:
                parts.append(out)
                continue
            key, value = (rows_of(repeated(each, heads // each.shape[1], 1), 1) for each in prefix)
            before = attend(rows_of(query, 1), key, value, scale=scale)
            first, first_lse = before.out[0].transpose(0, 1), before.lse[0].transpose(0, 1)
            parts.append(merged(first, first_lse, out, weight))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def sound(self) -> bool:
        """Always."""
        return True


class JointMixing:
    """One softmax over prefix and own keys, without the search for its largest score.

    Exponentials are to base 2 and nothing is taken from the scores, which is exact as long as sums
    stay in range; `sound` says whether they did. Both parts add to one numerator and one sum.
    """

    def __init__(self, widest: int | None = None) -> None:
        """Meant for targets of up to `widest` tokens; None for all."""
        self.widest = widest or float("inf")
        self._least, self._largest = float("inf"), 0.0

    def own(self, heads: Heads, batch: Packed, scale: float, *, asked: bool) -> Own:
        """As `Mixing.own`; `out` is the numerator and `weight` the sum below it."""
        query, key, value = (part.flatten(0, 1) for part in in_rows(heads, batch, asked=asked))
        add = _asked_sums if asked else _causal_sums
        out, weight = add(query, key, value, batch, scale * LOG2_E)
        back = batch.asked_back if asked else batch.gather
        return Own(heads.query, picked(out, back), picked(weight, back))

    def joined(
        self, own: Own, keys: Sequence[Keys], segments: Segments, scale: float
    ) -> torch.Tensor:
        """As `Mixing.joined`."""
        value, total = own.out.clone(), own.weight.clone()
        for (start, stop), prefix in zip(segments, keys, strict=True):
            if prefix is not None:
                into = (value[start:stop], total[start:stop])
                _add_prefix(own.query[start:stop], prefix, into, scale * LOG2_E)
        least, largest = torch.aminmax(total)
        self._least = min(self._least, float(least))
        self._largest = max(self._largest, float(largest))
        return value.div_(total[..., None])

    def sound(self) -> bool:
        """Whether no sum left the range since the last question."""
        found = self._least >= LEAST_SUM and self._largest <= LARGEST_SUM
        self._least, self._largest = float("inf"), 0.0
        return found


def _causal_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Packed, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators [rows * width, heads, head width] and sums [rows * width, heads].

    Query, key and value are [rows * heads, width, head width].
    """
    shape = (batch.rows, batch.width, len(query) // batch.rows)
    found = query.new_empty(*shape, query.shape[2])
    total = query.new_empty(shape, dtype=torch.float32)
    for start in range(0, batch.width, OWN_STEP):
        stop = min(start + OWN_STEP, batch.width)
        scores = _scores(query[:, start:stop], key[:, :stop], factor)
        sums, mixed = _summed(_without_later(scores, start).exp2_(), value[:, :stop], batch.rows)
        found[:, start:stop], total[:, start:stop] = mixed, sums
    return found.flatten(0, 1), total.flatten(0, 1)


def _asked_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Packed, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_causal_sums` for queries [rows * heads, most answers, head width]."""
    scores = _scores(query, key, factor)
    scores.unflatten(0, (batch.rows, -1)).add_(batch.mask(query.dtype))
    sums, mixed = _summed(scores.exp2_(), value, batch.rows)
    return mixed.flatten(0, 1), sums.flatten(0, 1)


def _without_later(scores: torch.Tensor, start: int) -> torch.Tensor:
    """Scores of queries `start`... with -inf for the keys after each, in place."""
    scores[:, :, start:].add_(_later(scores.shape[1], scores.dtype, scores.device))
    return scores


@lru_cache(maxsize=OWN_STEP)
def _later(tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """0, or -inf above the diagonal, [tokens, tokens]."""
    return torch.full((tokens, tokens), float("-inf"), dtype=dtype, device=device).triu_(1)


def _summed(
    powers: torch.Tensor, value: torch.Tensor, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums [rows, queries, heads] and numerators [rows, queries, heads, head width]."""
    sums = powers.sum(-1).unflatten(0, (rows, -1))
    mixed = torch.bmm(powers, value).unflatten(0, (rows, -1))
    return sums.transpose(1, 2), mixed.transpose(1, 2)


def _add_prefix(
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    into: tuple[torch.Tensor, torch.Tensor],
    factor: float,
) -> None:
    """Add a prefix's part to numerators and sums, for so many queries at a time."""
    heads = query.shape[1]
    key, value = (repeated(part, heads // part.shape[1], 1).transpose(0, 1) for part in keys)
    step = max(CHUNK_SCORES // (heads * key.shape[1]), 1)
    for start in range(0, len(query), step):
        powers = _scores(query[start : start + step].transpose(0, 1), key, factor).exp2_()
        into[1][start : start + step] += powers.sum(-1).T
        into[0][start : start + step] += torch.bmm(powers, value).transpose(0, 1)


def _scores(query: torch.Tensor, key: torch.Tensor, factor: float) -> torch.Tensor:
    """The factor times query . key, [batch, queries, keys]."""
    shape = (query.shape[0], query.shape[1], key.shape[1])
    nothing = query.new_empty(1).expand(shape)
    return torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=factor)


def in_rows(heads: Heads, batch: Packed, *, asked: bool) -> list[torch.Tensor]:
    """Query, key and value as [rows, heads, tokens, width], all with the query's heads."""
    places = (batch.asked if asked else batch.spread, batch.spread, batch.spread)
    groups = heads.query.shape[1] // heads.key.shape[1]
    return [
        repeated(rows_of(picked(part, place), batch.rows), times, 1)
        for part, place, times in zip(heads, places, (1, groups, groups), strict=True)
    ]


def picked(tensor: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """The tensor's rows at `places`; all of them for None."""
    return tensor if places is None else tensor.index_select(0, places)


def rows_of(part: torch.Tensor, rows: int) -> torch.Tensor:
    """[rows * tokens, heads, width] as [rows, heads, tokens, width]."""
    return part.view(rows, -1, *part.shape[1:]).transpose(1, 2)


def repeated(part: torch.Tensor, times: int, dim: int) -> torch.Tensor:
    """Every key head once for each query head that reads it."""
    return part if times == 1 else part.repeat_interleave(times, dim=dim)
