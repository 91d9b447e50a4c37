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
from delift_pipeline.scoring.compiled import by_loops, laid_out, powers_and_sums, taken_back
from delift_pipeline.scoring.packed import Packed, Seen
from delift_pipeline.scoring.turning import Turn

LOG2_E = 1.4426950408889634
CHUNK_SCORES = 1 << 21
"""Attention scores made at a time: few enough to stay in a CPU's cache."""
OWN_STEP = 64
"""Queries whose own keys are read together: keys that none of them may see are skipped."""
KEYS_TOGETHER = 32
"""A product of bfloat16 is up to a third faster with a multiple of so many keys."""
LEAST_SUM, LARGEST_SUM = 2.0**-80, 2.0**100
"""Sums of exponentials between these lose no digit in bfloat16 or float32."""


class Heads(NamedTuple):
    """Queries, keys and values of tokens, [tokens, heads, width] (fewer heads for the last two)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


Keys = tuple[torch.Tensor, torch.Tensor] | None
"""Keys and values of one prefix in one layer, [key heads, tokens, width] each; None without one."""


class Own(NamedTuple):
    """What queries take from the tokens of their own target, before anything of a prefix.

    Attributes:
        query: Turned queries, laid out as their mixing reads them.
        out: What they take, as their mixing keeps it.
        weight: float32, what it takes to add a prefix to it.
        kept: Whether it is needed again.
    """

    query: torch.Tensor
    out: torch.Tensor
    weight: torch.Tensor
    kept: bool = False


class Mixing(Protocol):
    """A way to attend.

    Attributes:
        widest: Tokens of the longest target that it is meant for.
    """

    widest: float

    def own(self, heads: Heads, turn: Turn, batch: Packed, scale: float, *, asked: bool) -> Own:
        """Attention of tokens to those before them in their target, themselves included.

        Args:
            heads: The batch's heads, not turned.
            turn: The tokens' positions.
            batch: The targets.
            scale: Factor of the scores.
            asked: Whether the queries are those of `batch.at` alone.
        """
        ...

    def joined(
        self, own: Own, keys: Sequence[Keys], batch: Packed, scale: float, *, asked: bool
    ) -> torch.Tensor:
        """Attention to a prefix and to the own target together, [queries, heads, width].

        Args:
            own: The own part; left as it is where it is kept.
            keys: Of the prefix of each of the batch's segments.
            batch: The targets.
            scale: Factor of the scores.
            asked: As in `own`.
        """
        ...

    def sound(self) -> bool:
        """Whether everything mixed since the last question can be believed."""
        ...


class SplitMixing:
    """The device's kernel on prefix and own keys apart; all by token, [tokens, heads, ...]."""

    widest = float("inf")

    def own(self, heads: Heads, turn: Turn, batch: Packed, scale: float, *, asked: bool) -> Own:
        """As `Mixing.own`; `weight` is the log-sum-exp of the scores."""
        asking = turn.at(batch.at if asked else None)
        heads = Heads(asking(heads.query), turn(heads.key), heads.value)
        query, key, value = in_rows(heads, batch, asked=asked)
        mask = batch.mask(query.dtype) if asked else None
        part = attend(query, key, value, scale=scale, causal=not asked, mask=mask)
        out, weight = part.out.transpose(1, 2).flatten(0, 1), part.lse.transpose(1, 2).flatten(0, 1)
        back = batch.asked_back if asked else batch.gather
        if batch.full and not asked:
            return Own(heads.query, out, weight)
        return Own(heads.query, picked(out, back), picked(weight, back))

    def joined(
        self, own: Own, keys: Sequence[Keys], batch: Packed, scale: float, *, asked: bool
    ) -> torch.Tensor:
        """As `Mixing.joined`."""
        heads, parts = own.query.shape[1], []
        segments = batch.asked_segments if asked else batch.segments
        for (start, stop), prefix in zip(segments, keys, strict=True):
            query, out, weight = (part[start:stop] for part in own[:3])
            if prefix is None:
                parts.append(out)
                continue
            key, value = (repeated(each, heads // each.shape[0], 0)[None] for each in prefix)
            before = attend(rows_of(query, 1), key, value, scale=scale)
            first, first_lse = before.out[0].transpose(0, 1), before.lse[0].transpose(0, 1)
            parts.append(merged(first, first_lse, out, weight))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def sound(self) -> bool:
        """Always."""
        return True


class JointMixing:
    """One softmax over prefix and own keys, without the search for its largest score; on a CPU.

    Exponentials are to base 2 and nothing is taken from the scores, which is exact as long as sums
    stay in range; `sound` says whether they did. Both parts add to one numerator and one sum. All
    is laid out by head and by the batch's cells, padding included, [heads, cells, ...].
    """

    def __init__(self, widest: int | None = None) -> None:
        """Meant for targets of up to `widest` tokens; None for all."""
        self.widest = widest or float("inf")
        self._least, self._largest = float("inf"), 0.0

    def own(self, heads: Heads, turn: Turn, batch: Packed, scale: float, *, asked: bool) -> Own:
        """As `Mixing.own`; `out` is the numerator and `weight` the sum below it."""
        many = heads.query.shape[1]
        asking = turn.at(batch.at if asked else None)
        query = laid_out(heads.query, batch.asked if asked else batch.spread, many, asking)
        key = laid_out(heads.key, batch.spread, many, turn)
        value = laid_out(heads.value, batch.spread, many)
        add = _asked_sums if asked else _causal_sums
        by_row = Heads(*(_by_row(part, batch.rows) for part in (query, key, value)))
        out, weight = add(by_row, batch, scale * LOG2_E)
        return Own(query, out.view(query.shape), weight.view(query.shape[:2]))

    def joined(
        self, own: Own, keys: Sequence[Keys], batch: Packed, scale: float, *, asked: bool
    ) -> torch.Tensor:
        """As `Mixing.joined`."""
        value, total = (own.out.clone(), own.weight.clone()) if own.kept else own[1:3]
        cells = total.shape[1] // batch.rows
        for (start, stop), prefix in zip(batch.row_segments, keys, strict=True):
            if prefix is None:
                continue
            here = slice(start * cells, stop * cells)
            parts = [part[:, here].contiguous() for part in (own.query, value, total)]
            _add_prefix((parts[0], parts[1], parts[2]), prefix, scale * LOG2_E)
            if len(keys) > 1:
                value[:, here], total[:, here] = parts[1:]
        least, largest = torch.aminmax(total)
        self._least = min(self._least, float(least))
        self._largest = max(self._largest, float(largest))
        return taken_back(value, total, batch.asked_back if asked else batch.gather)

    def sound(self) -> bool:
        """Whether no sum left the range since the last question."""
        found = self._least >= LEAST_SUM and self._largest <= LARGEST_SUM
        self._least, self._largest = float("inf"), 0.0
        return found


def _by_row(part: torch.Tensor, rows: int) -> torch.Tensor:
    """[heads, cells, width] as [heads * rows, cells of a row, width]."""
    return part.unflatten(1, (rows, -1)).flatten(0, 1)


def _causal_sums(own: Heads, batch: Packed, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators [heads * rows, width, head width] and sums [heads * rows, width].

    All of `own` are [heads * rows, width, head width].
    """
    found = torch.empty_like(own.query)
    total = found.new_empty(found.shape[:2], dtype=torch.float32)
    for start in range(0, batch.width, OWN_STEP):
        here = slice(start, min(start + OWN_STEP, batch.width))
        seen = _earlier(start, here.stop)
        powers, total[:, here] = _powers(own.query[:, here], own.key[:, : here.stop], factor, seen)
        if here.stop - start == batch.width:
            return torch.bmm(powers, own.value), total
        found[:, here] = torch.bmm(powers, own.value[:, : here.stop])
    return found, total


def _asked_sums(own: Heads, batch: Packed, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_causal_sums` for queries [heads * rows, most answers, head width]."""
    powers, total = _powers(own.query, own.key, factor, batch.seen)
    return torch.bmm(powers, own.value), total


@lru_cache(maxsize=OWN_STEP)
def _earlier(start: int, stop: int) -> Seen:
    """Tokens `start` to `stop` see those up to themselves."""
    return Seen(torch.arange(start + 1, stop + 1)[None], stop)


def _add_prefix(
    own: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    keys: tuple[torch.Tensor, torch.Tensor],
    factor: float,
) -> None:
    """Add a prefix's part to numerators and sums, for so many queries at a time.

    Args:
        own: Queries and numerators, [heads, queries, width], and sums [heads, queries].
        keys: The prefix's.
        factor: Factor of the scores.
    """
    many, tokens, _ = keys[0].shape
    # Heads that share keys lie side by side: they are more queries of the same keys.
    query, value, total = (part.view(many, -1, *part.shape[2:]) for part in own)
    key, values = (_widened(part) for part in keys)
    seen = Seen(torch.tensor([[tokens]]), tokens)
    step = max(CHUNK_SCORES // (many * key.shape[1]), 1)
    for start in range(0, query.shape[1], step):
        here = slice(start, start + step)
        powers, sums = _powers(query[:, here], key, factor, seen)
        total[:, here] += sums
        value[:, here].baddbmm_(powers, values)


def _widened(part: torch.Tensor) -> torch.Tensor:
    """Keys or values [heads, tokens, width] of as many tokens as products are fast with."""
    if not _in_halves(part):
        return part
    return torch.nn.functional.pad(part, (0, 0, 0, -part.shape[1] % KEYS_TOGETHER))


def _in_halves(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and by_loops(tensor)


def _powers(
    query: torch.Tensor, key: torch.Tensor, factor: float, seen: Seen
) -> tuple[torch.Tensor, torch.Tensor]:
    """2^(factor query . key), [batch, queries, keys], 0 for keys not seen, and sums over keys.

    Args:
        query: [batch, queries, width].
        key: [batch, keys, width].
        factor: Factor of the scores.
        seen: The keys that each query sees.
    """
    if _in_halves(query):
        return powers_and_sums(torch.bmm(query, key.transpose(1, 2)), factor, seen.counts)
    # By key first: sums over keys are then sums of whole rows.
    nothing = query.new_empty(1).expand(query.shape[0], key.shape[1], query.shape[1])
    scores = torch.baddbmm(nothing, key, query.transpose(1, 2), beta=0, alpha=factor)
    if seen.counts.numel() > 1:
        scores.view(-1, *seen.hidden.shape).add_(seen.hidden)
    powers = scores.exp2_()
    return powers.transpose(1, 2), powers.sum(1)


def in_rows(heads: Heads, batch: Packed, *, asked: bool) -> list[torch.Tensor]:
    """Query, key and value as [rows, heads, tokens, width], all with the query's heads."""
    spread = None if batch.full else batch.spread
    places = (batch.asked if asked else spread, spread, spread)
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
