"""From records to the exact tokens that are scored, within caps that never look at the partner."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import Refused
from delift_pipeline.prompts.chat import take_apart
from delift_pipeline.prompts.plain_text import Marker, PlainText
from delift_pipeline.prompts.template import (
    PROMPT_FIELDS,
    Piece,
    Slot,
    Spans,
    Template,
    Written,
    wording_of,
    write,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Segment:
    """A text tokenised by itself.

    Attributes:
        spans: Where the record's own fields lie in the text.
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

    def cut_middle(self, tokens: int, *fields: str) -> int:
        """Cut up to `tokens` tokens (1 or more) from the middle of fields and what is between them.

        Only tokens that lie wholly inside are cut, so the template's own words stay. Returns how
        many tokens were cut.
        """
        spans = [self.spans[name] for name in fields if name in self.spans]
        begin, end = min((a for a, _ in spans), default=0), max((b for _, b in spans), default=-1)
        inside = np.flatnonzero((self.offsets[:, 0] >= begin) & (self.offsets[:, 1] <= end))
        if not len(inside):
            return 0
        start, stop = int(inside[0]), int(inside[-1]) + 1
        cut = min(tokens, stop - start)
        first = start + (stop - start - cut + 1) // 2
        self.removed = sorted([*self.removed, (first, first + cut)])
        return cut


def tokenised(
    plain: PlainText, written: Sequence[Written], after_marker: bool, own_blanks: bool
) -> list[Segment]:
    """Tokenise texts, the runs between their special tokens each as one.

    `after_marker` says that a special token, or nothing, stands before each text; `own_blanks` that
    the blank that a tokenizer puts after a special token is kept.
    """
    # The texts between special tokens, by whether a blank before them is kept.
    runs: dict[bool, list[tuple[int, int, str]]] = {False: [], True: []}
    for at, one in enumerate(written):
        start, after = 0, after_marker
        for begin, end in [*(marker[:2] for marker in one.markers), (len(one.text),) * 2]:
            if begin > start:
                runs[own_blanks and after].append((at, start, one.text[start:begin]))
            start, after = end, True
    # Of each text: where tokens start, their ids and their places.
    parts = [[(begin, [own], [(begin, end)]) for begin, end, own in w.markers] for w in written]
    foreign = [False] * len(written)
    for blank, own in runs.items():
        encodings = plain.encode([text for _, _, text in own], blank)
        for (at, start, _), encoding in zip(own, encodings, strict=True):
            places = encoding.offsets
            if start:
                places = [(start + begin, start + end) for begin, end in places]
            parts[at].append((start, encoding.ids, places))
            foreign[at] |= not plain.markers.isdisjoint(encoding.ids)
    segments = []
    for one, own, odd in zip(written, parts, foreign, strict=True):
        own.sort(key=lambda part: part[0])
        ids = np.asarray([token for _, tokens, _ in own for token in tokens], dtype=np.int32)
        offsets = np.asarray([place for _, _, places in own for place in places], dtype=np.int64)
        segments.append(Segment(one.text, one.spans, ids, offsets.reshape(-1, 2), odd))
    return segments


_CHUNK = 2048
_EMPTY = {"instruction": "", "input": "", "output": ""}


class Unscorable(str):
    """Why a record is not scored: it does not fit, or its text is no plain text."""


@dataclass
class Example:
    """One record, tokenised: its segments as a target and as a demonstration, within the caps."""

    prompt: Segment
    answer: Segment
    shown_prompt: Segment
    shown_answer: Segment
    cuts: list[str] = field(default_factory=list)


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


class Encoder:
    """Turns records into token ids.

    Attributes:
        window: Most tokens in one sequence.
        head: Ids before a target without demonstration: begin-of-text and the template's `alone`.
        start: Ids before the first demonstration: begin-of-text and the template's `lead`.
        eos: The id of the token that ends an answer: end-of-text, or a chat template's end of turn.
        bos: The begin-of-text id, if the wording begins with it.
        demonstration_cap: Most tokens of a demonstration; with `start`, half the window.
        target_cap: Most tokens of a target's prompt and answer: the other half.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        window: int,
        chat: str | None = None,
    ) -> None:
        """Prepare an encoder; `chat` is the model's own chat template, for a template that asks.

        Raises:
            Refused: the tokenizer has no end-of-text token or no fast backend, the chat template
                cannot be used, or the window does not even hold the template's own words.
        """
        self.tokenizer, self.template, self.window = tokenizer, template, window
        self.plain = PlainText(tokenizer)
        own_end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
        if not isinstance(own_end, int):
            reason = "the tokenizer has no end-of-text token (eos_token), and an answer must end"
            raise Refused(reason, field="model")
        bos = Marker(begin, str(tokenizer.decode([begin]))) if isinstance(begin, int) else None
        names = tokenizer.special_tokens_map
        dialogue = take_apart(chat, names, template.system) if template.chat else None
        self.wording = wording_of(template, self.plain, bos, dialogue)
        self.eos = self.wording.end.id if self.wording.end else own_end
        self.bos = [bos.id] if bos is not None and bos in self.wording.head else []
        self.head, self.start = self._ids(self.wording.head), self._ids(self.wording.start)
        ended = [self.eos] * template.demonstration.end_of_text
        self.close: list[int] = [*self._ids(self.wording.close, False), *ended]
        half = window // 2
        self.target_cap = window - half
        self.demonstration_cap = half - len(self.start)
        # The template's own words, and one token of each text.
        blank, wording, own = [{**_EMPTY, "input": " "}], self.wording, len(self.start)
        prompt, answer, shown_prompt, shown_answer = (
            len(self._segments(blank, slot)[0])
            for slot in (wording.prompt, wording.answer, wording.shown_prompt, wording.shown_answer)
        )
        shown = shown_prompt + shown_answer + 2 + own + len(self.close)
        needed = max(len(self.head) + 1, prompt + answer + 2, shown)
        if needed > half:
            raise Refused(
                f"a window of {window} tokens is too small: the template's own words take "
                f"{needed} of its half",
                field="window",
            )

    @property
    def marks(self) -> frozenset[int]:
        """Ids of the special tokens that the wording uses."""
        return frozenset({self.eos, *(marker.id for marker in self.wording.markers)})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the wording."""
        return self.wording.notes

    def encode(
        self, frame: pl.DataFrame, advance: Callable[[int], None] = lambda _: None
    ) -> EncodedRecords:
        """Tokenise records (`RECORD_SCHEMA`): the scorable ones, what was cut, what is unscorable.

        `advance` gets the number of records done since its last call.
        """
        ids: list[str] = []
        kept: list[Example] = []
        unscorable: dict[str, str] = {}
        columns = frame.select("record_id", "instruction", "input", "output")
        for chunk in columns.iter_slices(_CHUNK):
            records = chunk.to_dicts()
            for record, example in zip(records, self.examples(records), strict=True):
                if isinstance(example, Unscorable):
                    unscorable[record["record_id"]] = str(example)
                else:
                    ids.append(record["record_id"])
                    kept.append(example)
            advance(chunk.height)
        end, close = _int32([self.eos]), _int32(self.close)
        targets = [np.concatenate([e.prompt.ids, e.answer.ids, end]) for e in kept]
        shown = [np.concatenate([e.shown_prompt.ids, e.shown_answer.ids, close]) for e in kept]
        return EncodedRecords(
            ids=tuple(ids),
            head=_int32(self.head),
            start=_int32(self.start),
            target_tokens=np.concatenate([_int32([]), *targets]),
            target_starts=np.cumsum([0, *map(len, targets)], dtype=np.int64),
            prompt_lengths=_int32([len(e.prompt) for e in kept]),
            demonstration_tokens=np.concatenate([_int32([]), *shown]),
            demonstration_starts=np.cumsum([0, *map(len, shown)], dtype=np.int64),
            unscorable=unscorable,
            cuts=dict(Counter(cut for example in kept for cut in example.cuts)),
        )

    def examples(self, records: Sequence[Mapping[str, Any]]) -> list[Example | Unscorable]:
        """Tokenise records and fit each into the caps."""
        wording = self.wording
        slots = (wording.prompt, wording.answer, wording.shown_prompt, wording.shown_answer)
        made = {slot: self._segments(records, slot) for slot in slots}
        rows = zip(*(made[slot] for slot in slots), strict=True)
        return [self._fitted(Example(*segments)) for segments in rows]

    def _segments(self, records: Sequence[Mapping[str, Any]], slot: Slot) -> list[Segment]:
        written = [write(slot.pieces, record) for record in records]
        return tokenised(self.plain, written, slot.after_marker, self.template.chat)

    def _ids(self, parts: Piece, after_marker: bool = True) -> list[int]:
        return self._segments([_EMPTY], Slot((parts,), after_marker))[0].ids.tolist()

    def _fitted(self, example: Example) -> Example | Unscorable:
        if example.prompt.foreign or example.answer.foreign:
            return Unscorable("its text reads as a special token of this model's tokenizer")
        # The demonstration is cut on its own copy: the caps of the two roles differ.
        prompt = example.shown_prompt = replace(example.shown_prompt, removed=[])
        shown = example.shown_answer = replace(example.shown_answer, removed=[])
        answer = len(example.answer) + 1
        over = len(example.prompt) + answer - self.target_cap
        for name in ("input", "instruction"):
            if over > 0 and (cut := example.prompt.cut_middle(over, name)):
                example.cuts.append(f"target_{name}")
                over -= cut
        if over > 0:
            room = self.target_cap - len(example.prompt)
            return Unscorable(
                f"its answer takes {answer:,} tokens and {room:,} fit beside the prompt's fixed "
                f"words in half of the window of {self.window:,}"
            )
        over = len(prompt) + len(shown) + len(self.close) - self.demonstration_cap
        if over > 0 and (cut := prompt.cut_middle(over, *PROMPT_FIELDS)):
            example.cuts.append("demonstration_prompt")
            over -= cut
        if over > 0:
            example.cuts.append("demonstration_answer")
            length = len(shown.tokens)
            shown.removed.append((max(length - over, 0), length))
        return example


def _int32(numbers: Sequence[int]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int32)
