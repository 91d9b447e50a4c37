"""Records as token ids, in flat arrays that engines gather from."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class EncodedRecords:
    """The scorable records of a frame as token ids, within the caps.

    Attributes:
        ids: record_ids of the scorable records, in the frame's order.
        head: What precedes a target without demonstration, int32.
        start: What precedes the first demonstration, int32.
        target_tokens: Prompt and answer (closed by end-of-text) of every record, end to end, int32.
        target_starts: Where each record's begin, int64 [records + 1].
        prompt_lengths: Prompt tokens of each record, int32 [records].
        demonstration_tokens: Every record as a demonstration, end to end, int32.
        demonstration_starts: Where each begins, int64 [records + 1].
        unscorable: record_id -> why it can be neither target nor demonstration.
        cuts: Kind of cut -> how many records it was made in.
    """

    ids: tuple[str, ...]
    head: np.ndarray
    start: np.ndarray
    target_tokens: np.ndarray = field(repr=False)
    target_starts: np.ndarray = field(repr=False)
    prompt_lengths: np.ndarray = field(repr=False)
    demonstration_tokens: np.ndarray = field(repr=False)
    demonstration_starts: np.ndarray = field(repr=False)
    unscorable: dict[str, str]
    cuts: dict[str, int]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """record_id -> row."""
        return {record: row for row, record in enumerate(self.ids)}

    @cached_property
    def answer_lengths(self) -> np.ndarray:
        """Scored tokens of each record (T_i, end-of-text included), int32 [records]."""
        return (np.diff(self.target_starts) - self.prompt_lengths).astype(np.int32)

    def demonstration(self, row: int) -> np.ndarray:
        """The record as a demonstration, int32 [tokens]."""
        start, stop = self.demonstration_starts[row : row + 2]
        return self.demonstration_tokens[start:stop]

    def prompt(self, row: int) -> np.ndarray:
        """The record's prompt as a target, int32 [tokens]."""
        start = self.target_starts[row]
        return self.target_tokens[start : start + self.prompt_lengths[row]]

    def answer(self, row: int) -> np.ndarray:
        """The record's answer, closed by end-of-text: the scored tokens, int32 [tokens]."""
        start, stop = self.target_starts[row : row + 2]
        return self.target_tokens[start + self.prompt_lengths[row] : stop]

    def prefix(self, *demonstrations: int) -> np.ndarray:
        """Everything before a target: `head`, or `start` and the demonstrations of those rows."""
        if not demonstrations:
            return self.head
        return np.concatenate([self.start, *(self.demonstration(row) for row in demonstrations)])
