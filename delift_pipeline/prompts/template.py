"""Prompt templates: their definition in YAML, and their wording for one tokenizer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.validation import parse_yaml, read_text, validate
from delift_pipeline.prompts.chat import DialogueWording
from delift_pipeline.prompts.plain_text import PlainTextTokenizer, SpecialToken

PROMPT_FIELDS = ("instruction", "input")
FIELD_PATTERN = re.compile(r"\{([a-z_]+)\}")
_SHIPPED_TEMPLATES = resources.files("delift_pipeline") / "defaults" / "templates"

Spans = dict[str, tuple[int, int]]
"""The position of each field's text: field -> [start, stop) in characters."""


class Demonstration(BaseModel):
    """How a demonstration is written. It uses the target's pieces where it has none of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    close: str = ""
    end_of_text: bool = False


class Template(BaseModel):
    """A prompt template; `defaults/templates/plain.yaml` explains most fields.

    With `chat`, prompt and answer become messages of the model's own chat template. They follow
    the system message `system`, unless it is empty.
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
            fields = FIELD_PATTERN.findall("".join(pieces))
            if sorted(fields) != sorted(expected):
                expected_fields = " and ".join(f"{{{field}}}" for field in expected) or "no field"
                faults.append(
                    f"{name} has {fields or 'no field'}, but needs {expected_fields} exactly once"
                )
        if self.system and not self.chat:
            faults.append("system is read where chat is true: set it, or leave system out")
        for name in ("alone", "lead", "demonstration"):
            if self.chat and getattr(self, name) != Template.model_fields[name].default:
                faults.append(f"{name} is the chat template's own where chat is true; leave it out")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def digest(self) -> str:
        """A digest of everything that decides the text; it is part of the fingerprint."""
        unused = set() if self.chat else {"chat", "system"}
        return digest_json(self.model_dump(mode="json", exclude=unused))


def shipped_templates() -> list[str]:
    """Return the names of the templates that come with the package."""
    names = (Path(entry.name) for entry in _SHIPPED_TEMPLATES.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def load_template(name_or_path: str) -> Template:
    """Load a shipped template by name, or any template from a YAML file.

    Raises:
        InputError: The template does not exist or is not valid; every fault is listed.
    """
    known = shipped_templates()
    shipped = name_or_path in known
    path = Path(
        str(_SHIPPED_TEMPLATES / f"{name_or_path}.yaml") if shipped else name_or_path
    ).expanduser()
    if not path.is_file():
        reason = f"There is no template {name_or_path!r}. Use {', '.join(known)} or a YAML file."
        raise InputError(reason, field="template")
    text = read_text(path, name_or_path)
    return validate(Template, parse_yaml(text, name_or_path).value, file=name_or_path)


@dataclass(frozen=True)
class TextField:
    """The place of one of a record's fields in a piece."""

    name: str


Part = str | SpecialToken | TextField
Piece = tuple[Part, ...]


@dataclass(frozen=True)
class TextSlot:
    """What is written for a prompt or an answer.

    Attributes:
        pieces: They are written one after another. A piece with the field `input` is left out for
            records without an input.
        after_special: Whether it follows a special token or nothing. Some tokenizers add a blank
            before a text there.
    """

    pieces: tuple[Piece, ...]
    after_special: bool = False


@dataclass(frozen=True)
class Wording:
    """Everything that is written for a pair, with places for the records' texts.

    Attributes:
        head: What stands before a target without a demonstration.
        start: What stands before the first demonstration.
        prompt: The target's prompt.
        answer: The target's answer, up to the token that ends it.
        demonstration_prompt: A demonstration's prompt.
        demonstration_answer: A demonstration's answer.
        close: What stands after a demonstration's answer.
        end: The token that ends an answer and is scored; None for the tokenizer's end-of-text.
        notes: What the user should know about the wording.
    """

    head: Piece
    start: Piece
    prompt: TextSlot
    answer: TextSlot
    demonstration_prompt: TextSlot
    demonstration_answer: TextSlot
    close: Piece
    end: SpecialToken | None = None
    notes: tuple[str, ...] = ()

    @property
    def slots(self) -> tuple[TextSlot, TextSlot, TextSlot, TextSlot]:
        """The prompt and answer of a target, and those of a demonstration."""
        return self.prompt, self.answer, self.demonstration_prompt, self.demonstration_answer

    @property
    def special_tokens(self) -> frozenset[SpecialToken]:
        """The special tokens of the wording."""
        pieces = [piece for slot in self.slots for piece in slot.pieces]
        parts = [part for piece in (self.head, self.start, self.close, *pieces) for part in piece]
        return frozenset(part for part in parts if isinstance(part, SpecialToken))


@dataclass(frozen=True)
class WrittenText:
    """A slot that is filled with the text of a record.

    Attributes:
        text: The whole text, with special tokens by their surface.
        spans: The position of each field's text.
        special_tokens: (start, stop, id) of each special token in the text, in order.
    """

    text: str
    spans: Spans
    special_tokens: tuple[tuple[int, int, int], ...] = ()


def write(pieces: Iterable[Piece], record: Mapping[str, Any]) -> WrittenText:
    """Write pieces with the texts of a record in place of the fields.

    Texts are copied and not interpreted: braces and special tokens in them mean nothing.
    """
    text, spans, special_tokens = "", Spans(), []
    for piece in pieces:
        if TextField("input") in piece and not record["input"]:
            continue
        for part in piece:
            start = len(text)
            if isinstance(part, TextField):
                text += record[part.name]
                spans[part.name] = (start, len(text))
            elif isinstance(part, SpecialToken):
                text += part.surface
                special_tokens.append((start, len(text), part.id))
            else:
                text += part
    return WrittenText(text, spans, tuple(special_tokens))


def parse_pieces(written: Iterable[str]) -> tuple[Piece, ...]:
    """Split a template's pieces, such as `"Input: {input}"`, into text and fields."""
    pieces = []
    for text in written:
        # The odd parts are the field names that the pattern captures.
        parts = enumerate(FIELD_PATTERN.split(text))
        pieces.append(tuple(TextField(part) if i % 2 else part for i, part in parts if part))
    return tuple(pieces)


def make_wording(
    template: Template,
    plain: PlainTextTokenizer,
    bos: SpecialToken | None,
    dialogue: DialogueWording | None,
) -> Wording:
    """Return the wording of a template, or of the model's chat template if `dialogue` is given."""
    if dialogue is not None:
        return _chat_wording(template, plain, dialogue)
    before: Piece = () if bos is None else (bos,)
    demonstration = template.demonstration
    return Wording(
        head=(*before, template.alone),
        start=(*before, template.lead),
        prompt=TextSlot(parse_pieces(template.prompt)),
        answer=TextSlot(parse_pieces(template.answer)),
        demonstration_prompt=TextSlot(parse_pieces(demonstration.prompt or template.prompt)),
        demonstration_answer=TextSlot(parse_pieces(demonstration.answer or template.answer)),
        close=(demonstration.close,),
    )


def _chat_wording(
    template: Template, plain: PlainTextTokenizer, dialogue: DialogueWording
) -> Wording:
    """Return the wording of a chat: user messages are prompts, assistant messages are answers."""
    system = (dialogue.system,) if dialogue.system else ()
    before, after = (plain.split_special_tokens(text) for text in dialogue.opening)
    opening, between = (*before, *system, *after), plain.split_special_tokens(dialogue.between)
    # The words before a user's text that do not close an answer (`lead`) are a part of its prompt.
    # So they are tokenised together with it wherever the prompt stands.
    _, rest = _split_at_token(between)
    closes_answer = bool(rest) and isinstance(rest[0], SpecialToken)
    _, lead = _split_at_token(_common_end(opening, rest[1:] if closes_answer else rest))
    head, between = _remove_end(opening, lead), _remove_end(between, lead)
    last_words, close = _split_at_token(between)
    # `tail` is empty if no special token ends an answer.
    tail, rest = _split_at_token(plain.split_special_tokens(dialogue.end))
    end = rest[0] if rest and isinstance(rest[0], SpecialToken) else None
    user, assistant = parse_pieces(template.prompt), parse_pieces(template.answer)
    middle, white = _split_before_answer(plain, dialogue.middle, dialogue.lead)
    before_answer = dialogue.demonstration_middle, dialogue.demonstration_lead
    other_middle, other_white = _split_before_answer(plain, *before_answer)
    first = _follows_token(head) and _follows_token(close)
    return Wording(
        head=head,
        start=head,
        prompt=TextSlot((lead, *user, middle), first),
        answer=TextSlot((white, *assistant, tail), bool(middle) and _follows_token(middle)),
        demonstration_prompt=TextSlot((lead, *user, other_middle), first),
        demonstration_answer=TextSlot(
            (other_white, *assistant, last_words),
            bool(other_middle) and _follows_token(other_middle),
        ),
        close=close,
        end=end,
        notes=tuple(
            f"the model's chat template takes white space off the ends of the {role}'s text; "
            "records are scored with their own"
            for role in dialogue.trimmed_roles
        ),
    )


def _split_before_answer(plain: PlainTextTokenizer, middle: str, lead: str) -> tuple[Piece, Piece]:
    """Return what stands before an answer, and the white space that belongs to the answer."""
    parts = plain.split_special_tokens(middle)
    strips = bool(parts) and isinstance(parts[-1], SpecialToken) and parts[-1].strips_after
    return parts, (lead,) if lead and not strips else ()


def _common_end(first: Sequence[Part], second: Sequence[Part]) -> Piece:
    """Return the parts that both sequences end with, down to the last words of a text."""
    shared: list[Part] = []
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            if isinstance(one, str) and isinstance(other, str):
                # Of two texts that differ, the longest common end that begins with white space.
                ends = (one[blank.start() :] for blank in re.finditer(r"\s", one))
                shared += [end for end in ends if other.endswith(end)][:1]
            break
        shared.append(one)
    return tuple(reversed(shared))


def _remove_end(parts: Piece, end: Piece) -> Piece:
    """Return parts without their end, whose first part may be only the end of a text."""
    remaining = list(parts[: len(parts) - len(end)])
    if end and parts[len(remaining)] != end[0]:
        whole, shared = parts[len(remaining)], end[0]
        assert isinstance(whole, str) and isinstance(shared, str)
        remaining.append(whole.removesuffix(shared))
    return tuple(remaining)


def _split_at_token(parts: Piece) -> tuple[Piece, Piece]:
    """Return the parts before the first special token and the rest (all, if there is none)."""
    place = next((at for at, part in enumerate(parts) if isinstance(part, SpecialToken)), 0)
    return parts[:place], parts[place:]


def _follows_token(parts: Piece) -> bool:
    """Whether a text after these parts would follow a special token or nothing."""
    return not parts or isinstance(parts[-1], SpecialToken)
