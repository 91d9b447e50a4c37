"""Encode records as the exact tokens that are scored.

A record is cut to a fixed number of tokens for each role, target and demonstration. The cut never
depends on the other record of a pair, so each record is tokenised once.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.prompts.chat import parse_chat_template
from delift_pipeline.prompts.plain_text import PlainTextTokenizer, SpecialToken
from delift_pipeline.prompts.template import (
    PROMPT_FIELDS,
    Piece,
    Spans,
    Template,
    TextSlot,
    WrittenText,
    make_wording,
    write,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Segment:
    """A text that was tokenised by itself.

    Attributes:
        spans: The position of each of the record's fields in the text.
        tokens: All token ids before any cut, int32 [tokens].
        offsets: The characters [start, stop) of each token, int64 [tokens, 2].
        reads_as_special: Whether a part of the text reads as a special token of this tokenizer.
        cut_ranges: The ranges [start, stop) of tokens that were cut, in ascending order.
    """

    text: str
    spans: Spans
    tokens: np.ndarray
    offsets: np.ndarray
    reads_as_special: bool = False
    cut_ranges: list[tuple[int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens) - sum(stop - start for start, stop in self.cut_ranges)

    @property
    def ids(self) -> np.ndarray:
        """The token ids after the cuts, int32 [tokens]."""
        if not self.cut_ranges:
            return self.tokens
        keep = np.ones(len(self.tokens), dtype=bool)
        for start, stop in self.cut_ranges:
            keep[start:stop] = False
        return self.tokens[keep]

    @property
    def text_after_cuts(self) -> str:
        """The text without the characters of the tokens that were cut."""
        text = self.text
        for start, stop in sorted(self.cut_ranges, reverse=True):
            text = text[: self.offsets[start, 0]] + text[self.offsets[stop - 1, 1] :]
        return text

    def cut_middle(self, tokens: int, *fields: str) -> int:
        """Cut up to `tokens` tokens (at least 1) from the middle of the text of some fields.

        The fields and what stands between them count as one text. Only tokens that lie wholly
        inside it are cut, so the template's own words stay. Returns the number of tokens cut.
        """
        spans = [self.spans[name] for name in fields if name in self.spans]
        begin, end = min((a for a, _ in spans), default=0), max((b for _, b in spans), default=-1)
        inside = np.flatnonzero((self.offsets[:, 0] >= begin) & (self.offsets[:, 1] <= end))
        if not len(inside):
            return 0
        start, stop = int(inside[0]), int(inside[-1]) + 1
        cut = min(tokens, stop - start)
        first = start + (stop - start - cut + 1) // 2
        self.cut_ranges = sorted([*self.cut_ranges, (first, first + cut)])
        return cut


def tokenise_texts(
    plain: PlainTextTokenizer,
    written: Sequence[WrittenText],
    after_special: bool,
    keep_blanks: bool,
) -> list[Segment]:
    """Tokenise texts; each run of text between two special tokens is tokenised as one.

    Args:
        plain: The tokenizer that reads nothing in a text as a special token.
        written: The texts with the positions of their special tokens.
        after_special: Whether each text follows a special token or nothing.
        keep_blanks: Whether to keep the blank that a tokenizer adds after a special token.
    """
    # Runs as (index of the text, first character, run), by whether an added blank is kept. All runs
    # of a kind go to the tokenizer at once, for speed.
    runs: dict[bool, list[tuple[int, int, str]]] = {False: [], True: []}
    for index, one in enumerate(written):
        start, after = 0, after_special
        for begin, end in [*(token[:2] for token in one.special_tokens), (len(one.text),) * 2]:
            if begin > start:
                runs[keep_blanks and after].append((index, start, one.text[start:begin]))
            start, after = end, True
    # The parts of each text as (first character, token ids, offsets): first its special tokens.
    parts = [[(a, [token], [(a, b)]) for a, b, token in one.special_tokens] for one in written]
    special = [False] * len(written)
    for blank, group in runs.items():
        encodings = plain.encode([text for _, _, text in group], blank)
        for (index, start, _), encoding in zip(group, encodings, strict=True):
            offsets = encoding.offsets
            if start:
                offsets = [(start + begin, start + end) for begin, end in offsets]
            parts[index].append((start, encoding.ids, offsets))
            special[index] |= not plain.special_ids.isdisjoint(encoding.ids)
    segments = []
    for one, own_parts, reads_as_special in zip(written, parts, special, strict=True):
        own_parts.sort(key=lambda part: part[0])
        ids = np.asarray([token for _, tokens, _ in own_parts for token in tokens], dtype=np.int32)
        pairs = np.asarray(
            [pair for _, _, offsets in own_parts for pair in offsets], dtype=np.int64
        )
        segments.append(Segment(one.text, one.spans, ids, pairs.reshape(-1, 2), reads_as_special))
    return segments


_CHUNK = 2048
_EMPTY = {"instruction": "", "input": "", "output": ""}


class Unscorable(str):
    """The reason why a record cannot be scored, as a sentence without its subject."""


@dataclass
class Example:
    """One tokenised record: its segments as a target and as a demonstration, cut to the caps."""

    prompt: Segment
    answer: Segment
    demonstration_prompt: Segment
    demonstration_answer: Segment
    cuts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EncodedRecords:
    """The scorable records of a frame as token ids, cut to the caps.

    Attributes:
        ids: The record ids of the scorable records, in the frame's order.
        head: The tokens before a target without a demonstration, int32.
        start: The tokens before the first demonstration, int32.
        target_tokens: Prompt, answer and end-of-text of all records, one after another, int32.
        target_starts: The position of each record in `target_tokens`, int64 [records + 1].
        prompt_lengths: The number of prompt tokens of each record, int32 [records].
        demonstration_tokens: All records as demonstrations, one after another, int32.
        demonstration_starts: The position of each in `demonstration_tokens`, int64 [records + 1].
        unscorable: record_id -> why it can be neither target nor demonstration.
        cuts: Kind of cut -> in how many records it was made.
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
        """The number of scored tokens of each record (T_i, with end-of-text), int32 [records]."""
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
        """The tokens before a target: `head`, or `start` and the demonstrations of some rows."""
        if not demonstrations:
            return self.head
        return np.concatenate([self.start, *(self.demonstration(row) for row in demonstrations)])


class Encoder:
    """Turns records into token ids.

    Attributes:
        window: The largest number of tokens in one sequence.
        plain: The tokenizer, which reads nothing in a text as a special token.
        wording: What the template writes around the texts of records.
        head: Ids before a target without demonstration: begin-of-text and the template's `alone`.
        start: Ids before the first demonstration: begin-of-text and the template's `lead`.
        close: Ids after a demonstration's answer.
        eos: The id of the token that ends an answer: end-of-text, or a chat template's end of turn.
        bos: The begin-of-text id in a list, or an empty list if the wording does not begin with it.
        demonstration_cap: The largest length of a demonstration: half the window less `start`.
        target_cap: The largest length of a target's prompt and answer: the other half.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        window: int,
        chat: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Prepare an encoder.

        Args:
            tokenizer: The model's tokenizer.
            template: The prompt template.
            window: The largest number of tokens in one sequence.
            chat: The model's own chat template, which only templates with `chat: true` use.
            notes: What the user should know about the choice of the template.

        Raises:
            InputError: The tokenizer has no end-of-text token or no fast backend, the chat template
                cannot be used, or the window is too small for the template's own words.
        """
        self.tokenizer, self.template, self.window = tokenizer, template, window
        self._choice_notes = tuple(notes)
        self.plain = PlainTextTokenizer(tokenizer)
        own_end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
        if not isinstance(own_end, int):
            reason = "The tokenizer has no end-of-text token (eos_token) to end an answer. Set one."
            raise InputError(reason, field="model")
        bos = None
        if isinstance(begin, int):
            bos = SpecialToken(begin, str(tokenizer.decode([begin])))
        names = tokenizer.special_tokens_map
        dialogue = parse_chat_template(chat, names, template.system) if template.chat else None
        self.wording = wording = make_wording(template, self.plain, bos, dialogue)
        self.eos = wording.end.id if wording.end else own_end
        self.bos = [bos.id] if bos is not None and bos in wording.head else []
        self.head, self.start = self._piece_ids(wording.head), self._piece_ids(wording.start)
        last = [self.eos] * template.demonstration.end_of_text
        self.close: list[int] = [*self._piece_ids(wording.close, False), *last]
        half = window // 2
        self.target_cap = window - half
        self.demonstration_cap = half - len(self.start)
        # Each half has to hold the template's own words and one token of each text.
        blank = [{**_EMPTY, "input": " "}]
        lengths = [len(self._tokenise_slot(blank, slot)[0]) for slot in wording.slots]
        demonstration = len(self.start) + sum(lengths[2:]) + 2 + len(self.close)
        needed = max(len(self.head) + 1, sum(lengths[:2]) + 2, demonstration)
        if needed > half:
            raise InputError(
                f"A window of {window} tokens is too small: the template's own words take "
                f"{needed} of its half. Use a larger window.",
                field="window",
            )

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the special tokens that the wording uses."""
        return frozenset({self.eos, *(token.id for token in self.wording.special_tokens)})

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the template and its wording."""
        return (*self._choice_notes, *self.wording.notes)

    def encode(
        self, frame: pl.DataFrame, advance: Callable[[int], None] = lambda _: None
    ) -> EncodedRecords:
        """Encode a frame of records (`RECORD_SCHEMA`) and list those that cannot be scored.

        `advance` is called with the number of records that were encoded since its last call.
        """
        ids: list[str] = []
        examples: list[Example] = []
        unscorable: dict[str, str] = {}
        columns = frame.select("record_id", "instruction", "input", "output")
        for chunk in columns.iter_slices(_CHUNK):
            records = chunk.to_dicts()
            for record, example in zip(records, self.examples(records), strict=True):
                if isinstance(example, Unscorable):
                    unscorable[record["record_id"]] = str(example)
                else:
                    ids.append(record["record_id"])
                    examples.append(example)
            advance(chunk.height)
        end, close = _int32([self.eos]), _int32(self.close)
        targets = [np.concatenate([e.prompt.ids, e.answer.ids, end]) for e in examples]
        parts = ((e.demonstration_prompt.ids, e.demonstration_answer.ids) for e in examples)
        demonstrations = [np.concatenate([prompt, answer, close]) for prompt, answer in parts]
        return EncodedRecords(
            ids=tuple(ids),
            head=_int32(self.head),
            start=_int32(self.start),
            target_tokens=np.concatenate([_int32([]), *targets]),
            target_starts=np.cumsum([0, *map(len, targets)], dtype=np.int64),
            prompt_lengths=_int32([len(e.prompt) for e in examples]),
            demonstration_tokens=np.concatenate([_int32([]), *demonstrations]),
            demonstration_starts=np.cumsum([0, *map(len, demonstrations)], dtype=np.int64),
            unscorable=unscorable,
            cuts=dict(Counter(cut for example in examples for cut in example.cuts)),
        )

    def without_prompts(self, records: EncodedRecords) -> EncodedRecords:
        """Return the records with an empty prompt in place of each target's own.

        The empty prompt is what the template writes for a record without instruction and input.
        Answers keep their token ids, so the two scores of an answer differ only by its prompt.
        """
        head = records.head
        prompt = self._tokenise_slot([_EMPTY], self.wording.prompt)[0].ids
        if not len(prompt):
            # An engine predicts an answer from its prompt, so the last token before becomes that.
            head, prompt = head[:-1], head[-1:] if len(head) else _int32([self.eos])
        answers = [records.answer(row) for row in range(len(records))]
        targets = [part for answer in answers for part in (prompt, answer)]
        lengths = [len(prompt) + len(answer) for answer in answers]
        return replace(
            records,
            head=head,
            target_tokens=np.concatenate([_int32([]), *targets]),
            target_starts=np.cumsum([0, *lengths], dtype=np.int64),
            prompt_lengths=np.full(len(records), len(prompt), dtype=np.int32),
        )

    def examples(self, records: Sequence[Mapping[str, Any]]) -> list[Example | Unscorable]:
        """Tokenise records and cut each to the caps."""
        slots = self.wording.slots
        segments_of = {slot: self._tokenise_slot(records, slot) for slot in slots}
        rows = zip(*(segments_of[slot] for slot in slots), strict=True)
        return [self._fit(Example(*segments)) for segments in rows]

    def _tokenise_slot(self, records: Sequence[Mapping[str, Any]], slot: TextSlot) -> list[Segment]:
        written = [write(slot.pieces, record) for record in records]
        return tokenise_texts(self.plain, written, slot.after_special, self.template.chat)

    def _piece_ids(self, parts: Piece, after_special: bool = True) -> list[int]:
        return self._tokenise_slot([_EMPTY], TextSlot((parts,), after_special))[0].ids.tolist()

    def _fit(self, example: Example) -> Example | Unscorable:
        """Cut an example to the caps.

        A target loses the middle of its input, then of its instruction, and never a part of its
        answer, which is what is scored. A demonstration loses the middle of its prompt, then the
        end of its answer.
        """
        if example.prompt.reads_as_special or example.answer.reads_as_special:
            return Unscorable("its text reads as a special token of this model's tokenizer")
        # A segment may serve both roles, whose caps differ, so the demonstration gets copies.
        prompt = example.demonstration_prompt = replace(example.demonstration_prompt, cut_ranges=[])
        answer = example.demonstration_answer = replace(example.demonstration_answer, cut_ranges=[])
        answer_tokens = len(example.answer) + 1
        excess = len(example.prompt) + answer_tokens - self.target_cap
        for name in ("input", "instruction"):
            if excess > 0 and (cut := example.prompt.cut_middle(excess, name)):
                example.cuts.append(f"target_{name}")
                excess -= cut
        if excess > 0:
            room = self.target_cap - len(example.prompt)
            return Unscorable(
                f"its answer takes {answer_tokens:,} tokens and {room:,} fit beside the prompt's "
                f"fixed words in half of the window of {self.window:,}"
            )
        excess = len(prompt) + len(answer) + len(self.close) - self.demonstration_cap
        if excess > 0 and (cut := prompt.cut_middle(excess, *PROMPT_FIELDS)):
            example.cuts.append("demonstration_prompt")
            excess -= cut
        if excess > 0:
            example.cuts.append("demonstration_answer")
            length = len(answer.tokens)
            answer.cut_ranges.append((max(length - excess, 0), length))
        return example


def _int32(numbers: Sequence[int]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int32)
