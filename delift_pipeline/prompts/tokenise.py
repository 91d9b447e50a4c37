"""From written text to segments: runs of plain text, and special tokens by their ids."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from delift_pipeline.prompts.plain_text import PlainText
from delift_pipeline.prompts.segments import Segment
from delift_pipeline.prompts.wording import Written

if TYPE_CHECKING:
    from tokenizers import Encoding


class _Run(NamedTuple):
    """A stretch of text without special tokens, and whether one stands before it."""

    start: int
    stop: int
    after_marker: bool


def tokenised(
    plain: PlainText, written: Sequence[Written], after_marker: bool, own_blanks: bool
) -> list[Segment]:
    """Tokenise texts, the runs between their special tokens each as one.

    Args:
        plain: The tokenizer.
        written: The texts.
        after_marker: Whether a special token, or nothing, stands before each.
        own_blanks: Whether the blank that a tokenizer puts after a special token is kept.
    """
    runs = [list(_runs(one, after_marker)) for one in written]
    made = _encoded(plain, written, runs, own_blanks)
    return [
        _segment(plain, one, own, [next(made) for _ in own])
        for one, own in zip(written, runs, strict=True)
    ]


def _runs(written: Written, after_marker: bool) -> Iterator[_Run]:
    start = 0
    for begin, end, _ in written.markers:
        if begin > start:
            yield _Run(start, begin, after_marker)
        start, after_marker = end, True
    if start < len(written.text):
        yield _Run(start, len(written.text), after_marker)


def _encoded(
    plain: PlainText, written: Sequence[Written], runs: list[list[_Run]], own_blanks: bool
) -> "Iterator[Encoding]":
    """The encodings of all runs, in order."""
    texts = [
        (one.text[run.start : run.stop], own_blanks and run.after_marker)
        for one, own in zip(written, runs, strict=True)
        for run in own
    ]
    made = {
        kept: iter(plain.encode([text for text, after in texts if after is kept], kept))
        for kept in {after for _, after in texts}
    }
    return (next(made[after]) for _, after in texts)


def _segment(
    plain: PlainText, written: Written, runs: list[_Run], encodings: "list[Encoding]"
) -> Segment:
    parts = [(begin, [token], [(begin, end)]) for begin, end, token in written.markers]
    for run, encoding in zip(runs, encodings, strict=True):
        places = encoding.offsets
        if run.start:
            places = [(run.start + begin, run.start + end) for begin, end in places]
        parts.append((run.start, encoding.ids, places))
    parts.sort(key=lambda part: part[0])
    ids = list(chain.from_iterable(tokens for _, tokens, _ in parts))
    offsets = list(chain.from_iterable(places for _, _, places in parts))
    return Segment(
        written.text,
        written.spans,
        np.asarray(ids, dtype=np.int32),
        np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
        any(not plain.markers.isdisjoint(encoding.ids) for encoding in encodings),
    )
