"""A tokenised piece of text from which tokens can be cut."""

from dataclasses import dataclass, field, replace

import numpy as np

from delift_pipeline.prompts.template import Spans


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
