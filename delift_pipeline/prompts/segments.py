"""Written text as tokens: runs of plain text, special tokens by their ids, and what is cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from delift_pipeline.prompts.plain_text import PlainText
from delift_pipeline.prompts.template import Spans
from delift_pipeline.prompts.wording import Written

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass
class Segment:
    """A text tokenised by itself.

    Attributes:
        text: The whole text.
        spans: Where the record's own fields lie in it.
        tokens: All its token ids, int32 [tokens].
        offsets: Where each token's text lies, [start, stop) in characters, [tokens, 2].
        foreign: Whether its text reads as a special token of this tokenizer.
        removed: Ranges [start, stop) of tokens that were cut, in ascending order.
    """

    text: str
    spans: Spans
    tokens: np.ndarray
    offsets: np.ndarray
    foreign: bool = False
    removed: list[tuple[int, int]] = field(default_factory=list)

    def copy(self) -> "Segment":
        """The same segment, to be cut on its own."""
        return replace(self, removed=list(self.removed))

    def __len__(self) -> int:
        return len(self.tokens) - sum(stop - start for start, stop in self.removed)

    @property
    def ids(self) -> np.ndarray:
        """Token ids after the cuts, int32 [tokens]."""
        if not self.removed:
            return self.tokens
        keep = np.ones(len(self.tokens), dtype=bool)
        for start, stop in self.removed:
            keep[start:stop] = False
        return self.tokens[keep]

    @property
    def shown(self) -> str:
        """The text without the characters of the tokens that were cut."""
        text = self.text
        for start, stop in sorted(self.removed, reverse=True):
            text = text[: self.offsets[start, 0]] + text[self.offsets[stop - 1, 1] :]
        return text

    def cut_middle(self, fields: str | tuple[str, ...], tokens: int) -> int:
        """Cut up to `tokens` tokens from the middle of a field, or of several and what is between.

        Only tokens that lie wholly inside are cut, so the template's own words stay.

        Returns:
            How many tokens were cut.
        """
        start, stop = self._inside((fields,) if isinstance(fields, str) else fields)
        cut = min(tokens, stop - start)
        if cut > 0:
            first = start + (stop - start - cut + 1) // 2
            self.removed = sorted([*self.removed, (first, first + cut)])
        return max(cut, 0)

    def cut_end(self, tokens: int) -> None:
        """Cut the last `tokens` tokens."""
        length = len(self.tokens)
        self.removed.append((max(length - tokens, 0), length))

    def _inside(self, fields: tuple[str, ...]) -> tuple[int, int]:
        spans = [self.spans[name] for name in fields if name in self.spans]
        if not spans:
            return 0, 0
        begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
        offsets = self.offsets
        inside = np.flatnonzero((offsets[:, 0] >= begin) & (offsets[:, 1] <= end))
        return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)


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
    runs = [list(_runs(one, after_marker, own_blanks)) for one in written]
    texts = [(text, blank) for own in runs for _, text, blank in own]
    encodings = {
        kept: iter(plain.encode([text for text, blank in texts if blank is kept], kept))
        for kept in {blank for _, blank in texts}
    }
    return [
        _segment(plain, one, [(start, next(encodings[blank])) for start, _, blank in own])
        for one, own in zip(written, runs, strict=True)
    ]


def _runs(written: Written, after: bool, own_blanks: bool) -> Iterator[tuple[int, str, bool]]:
    """Each text between special tokens: its start, itself, whether a blank before it is kept."""
    start = 0
    for begin, end, _ in written.markers:
        if begin > start:
            yield start, written.text[start:begin], own_blanks and after
        start, after = end, True
    if start < len(written.text):
        yield start, written.text[start:], own_blanks and after


def _segment(plain: PlainText, written: Written, runs: "Sequence[tuple[int, Encoding]]") -> Segment:
    parts = [(begin, [token], [(begin, end)]) for begin, end, token in written.markers]
    for start, encoding in runs:
        places = encoding.offsets
        if start:
            places = [(start + begin, start + end) for begin, end in places]
        parts.append((start, encoding.ids, places))
    parts.sort(key=lambda part: part[0])
    ids = list(chain.from_iterable(tokens for _, tokens, _ in parts))
    offsets = list(chain.from_iterable(places for _, _, places in parts))
    return Segment(
        written.text,
        written.spans,
        np.asarray(ids, dtype=np.int32),
        np.asarray(offsets, dtype=np.int64).reshape(-1, 2),
        any(not plain.markers.isdisjoint(encoding.ids) for _, encoding in runs),
    )
