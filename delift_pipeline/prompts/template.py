"""Prompt templates as data, and made ready for one tokenizer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.validation import parse_yaml, read_text, validate
from delift_pipeline.prompts.chat import Dialogue
from delift_pipeline.prompts.plain_text import Marker, PlainText

PROMPT_FIELDS = ("instruction", "input")
FIELD = re.compile(r"\{([a-z_]+)\}")
_SHIPPED = resources.files("delift_pipeline") / "defaults" / "templates"

Spans = dict[str, tuple[int, int]]
"""Field -> where its text lies, [start, stop) in characters."""


class Demonstration(BaseModel):
    """How a demonstration is written; without pieces of its own, by those of the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    close: str = ""
    end_of_text: bool = False


class Template(BaseModel):
    """A prompt template; `defaults/templates/plain.yaml` explains most fields.

    With `chat`, prompt and answer are the messages of the model's own chat template, after the
    message `system`, if it is not empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: int = Field(ge=1)
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    alone: str = ""
    lead: str = ""
    demonstration: Demonstration = Demonstration()
    chat: bool = False
    system: str = ""

    @model_validator(mode="after")
    def _check_fields(self) -> "Template":
        parts = {
            "prompt": (self.prompt, PROMPT_FIELDS),
            "answer": (self.answer, ("output",)),
            "demonstration.prompt": (self.demonstration.prompt or self.prompt, PROMPT_FIELDS),
            "demonstration.answer": (self.demonstration.answer or self.answer, ("output",)),
            "alone": ((self.alone,), ()),
            "lead": ((self.lead,), ()),
            "demonstration.close": ((self.demonstration.close,), ()),
        }
        faults = []
        for name, (pieces, expected) in parts.items():
            found = FIELD.findall("".join(pieces))
            if sorted(found) != sorted(expected):
                wanted = " and ".join(f"{{{field}}}" for field in expected) or "no field"
                faults.append(f"{name} holds {found or 'no field'} where {wanted} must stand once")
        if self.system and not self.chat:
            faults.append("system is read where chat is true")
        for name in ("alone", "lead", "demonstration"):
            if self.chat and getattr(self, name) != Template.model_fields[name].default:
                faults.append(f"{name} is the chat template's own where chat is true; leave it out")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def digest(self) -> str:
        """Digest of everything that decides the text; part of the fingerprint."""
        unused = set() if self.chat else {"chat", "system"}
        return digest_json(self.model_dump(mode="json", exclude=unused))


def shipped_templates() -> list[str]:
    """The names of the templates that come with the package."""
    names = (Path(entry.name) for entry in _SHIPPED.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def load_template(name_or_path: str) -> Template:
    """Load a shipped template by name, or any template from a YAML file.

    Raises:
        Refused: there is no such template or it is not valid; every fault is named.
    """
    known = shipped_templates()
    shipped = name_or_path in known
    path = Path(str(_SHIPPED / f"{name_or_path}.yaml") if shipped else name_or_path).expanduser()
    if not path.is_file():
        reason = f"no template {name_or_path!r}: use {', '.join(known)} or a YAML file"
        raise Refused(reason, field="template")
    text = read_text(path, name_or_path)
    return validate(Template, parse_yaml(text, name_or_path).value, file=name_or_path)


@dataclass(frozen=True)
class TextField:
    """A place for a record's text."""

    name: str


Part = str | Marker | TextField
Piece = tuple[Part, ...]


@dataclass(frozen=True)
class Slot:
    """What is written for one role of a record.

    Attributes:
        pieces: Written one after another; one with the field `input` is left out where that is
            empty.
        after_marker: Whether a special token stands before it, or nothing: some tokenizers put a
            blank before a text there.
    """

    pieces: tuple[Piece, ...]
    after_marker: bool = False


@dataclass(frozen=True)
class Wording:
    """Everything that is written for a pair but the records' own texts.

    Attributes:
        head: Before a target without demonstration.
        start: Before the first demonstration.
        answer: The target's answer, up to the token that ends it.
        shown_prompt: A demonstration's prompt; `shown_answer` its answer.
        close: After a demonstration's answer.
        end: The token that ends an answer and is scored; None for the tokenizer's end-of-text.
    """

    head: Piece
    start: Piece
    prompt: Slot
    answer: Slot
    shown_prompt: Slot
    shown_answer: Slot
    close: Piece
    end: Marker | None = None
    notes: tuple[str, ...] = ()

    @property
    def markers(self) -> frozenset[Marker]:
        """The special tokens in it."""
        slots = (self.prompt, self.answer, self.shown_prompt, self.shown_answer)
        pieces = [self.head, self.start, self.close, *(p for slot in slots for p in slot.pieces)]
        return frozenset(part for piece in pieces for part in piece if isinstance(part, Marker))


@dataclass(frozen=True)
class Written:
    """A record's text in a slot.

    Attributes:
        text: The whole, special tokens by their surface.
        spans: Where each field's own text lies.
        markers: (start, stop, id) of each special token in the text, in order.
    """

    text: str
    spans: Spans
    markers: tuple[tuple[int, int, int], ...] = ()


def write(pieces: Iterable[Piece], record: Mapping[str, Any]) -> Written:
    """Write pieces with a record's text in place of the fields.

    The text of a record is copied, never read: braces and special tokens in it mean nothing.
    """
    text, spans, markers = "", Spans(), []
    for piece in pieces:
        if TextField("input") in piece and not record["input"]:
            continue
        for part in piece:
            start = len(text)
            if isinstance(part, TextField):
                text += record[part.name]
                spans[part.name] = (start, len(text))
            elif isinstance(part, Marker):
                text += part.surface
                markers.append((start, len(text), part.id))
            else:
                text += part
    return Written(text, spans, tuple(markers))


def pieces_of(written: Iterable[str]) -> tuple[Piece, ...]:
    """A template's pieces with their fields found."""
    # The odd parts are the names that the pattern captures.
    split = ([TextField(p) if i % 2 else p for i, p in enumerate(FIELD.split(t))] for t in written)
    return tuple(tuple(part for part in parts if part != "") for parts in split)


def wording_of(
    template: Template, plain: PlainText, bos: Marker | None, dialogue: Dialogue | None
) -> Wording:
    """The wording of a template; for one that asks for it, of the chat template taken apart."""
    if dialogue is not None:
        return _chat(template, plain, dialogue)
    before: Piece = () if bos is None else (bos,)
    shown = template.demonstration
    return Wording(
        head=(*before, template.alone),
        start=(*before, template.lead),
        prompt=Slot(pieces_of(template.prompt)),
        answer=Slot(pieces_of(template.answer)),
        shown_prompt=Slot(pieces_of(shown.prompt or template.prompt)),
        shown_answer=Slot(pieces_of(shown.answer or template.answer)),
        close=(shown.close,),
    )


def _chat(template: Template, plain: PlainText, dialogue: Dialogue) -> Wording:
    """A user's message holds the prompt pieces, the assistant's the answer pieces."""
    system = (dialogue.system,) if dialogue.system else ()
    before, after = (plain.marked(text) for text in dialogue.opening)
    opening, between = (*before, *system, *after), plain.marked(dialogue.between)
    # What stands before every user's text and closes no answer belongs to its prompt, so that the
    # two are tokenised as one run of text wherever the prompt stands.
    _, rest = _to_marker(between)
    ended = bool(rest) and isinstance(rest[0], Marker)
    _, lead = _to_marker(_common_end(opening, rest[1:] if ended else rest))
    head, between = _without_end(opening, lead), _without_end(between, lead)
    shown_tail, close = _to_marker(between)
    # Without a special token there is no text before it.
    tail, rest = _to_marker(plain.marked(dialogue.end))
    end = rest[0] if rest and isinstance(rest[0], Marker) else None
    user, assistant = pieces_of(template.prompt), pieces_of(template.answer)
    middle, white = _before_answer(plain, dialogue.middle, dialogue.lead)
    shown, shown_white = _before_answer(plain, dialogue.shown_middle, dialogue.shown_lead)
    first = _marked(head) and _marked(close)
    return Wording(
        head=head,
        start=head,
        prompt=Slot((lead, *user, middle), first),
        answer=Slot((white, *assistant, tail), bool(middle) and _marked(middle)),
        shown_prompt=Slot((lead, *user, shown), first),
        shown_answer=Slot((shown_white, *assistant, shown_tail), bool(shown) and _marked(shown)),
        close=close,
        end=end,
        notes=tuple(
            f"the model's chat template takes white space off the ends of the {role}'s text; "
            "records are scored with their own"
            for role in dialogue.trimmed
        ),
    )


def _before_answer(plain: PlainText, middle: str, lead: str) -> tuple[Piece, Piece]:
    """What stands before an answer, and the white space that belongs to it."""
    parts = plain.marked(middle)
    swallowed = bool(parts) and isinstance(parts[-1], Marker) and parts[-1].takes_after
    return parts, (lead,) if lead and not swallowed else ()


def _common_end(first: Sequence[Part], second: Sequence[Part]) -> Piece:
    """The parts that two sequences end on; of texts that differ, from a line or word they share."""
    shared: list[Part] = []
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            if isinstance(one, str) and isinstance(other, str):
                # The longest shared end that begins with white space.
                ends = (one[blank.start() :] for blank in re.finditer(r"\s", one))
                shared += [end for end in ends if other.endswith(end)][:1]
            break
        shared.append(one)
    return tuple(reversed(shared))


def _without_end(parts: Piece, end: Piece) -> Piece:
    """Parts without those they end on, the first of which may be the end of a text."""
    kept = list(parts[: len(parts) - len(end)])
    if end and parts[len(kept)] != end[0]:
        whole, shared = parts[len(kept)], end[0]
        assert isinstance(whole, str) and isinstance(shared, str)
        kept.append(whole.removesuffix(shared))
    return tuple(kept)


def _to_marker(parts: Piece) -> tuple[Piece, Piece]:
    """The text before the first special token, and the rest; all is rest where there is none."""
    place = next((at for at, part in enumerate(parts) if isinstance(part, Marker)), 0)
    return parts[:place], parts[place:]


def _marked(parts: Piece) -> bool:
    """Whether a text after these parts follows a special token, or nothing."""
    return not parts or isinstance(parts[-1], Marker)
