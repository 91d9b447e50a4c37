"""Prompt templates as data: how a record becomes the text that is scored."""

import re
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.yaml_text import parse_yaml, read_text
from delift_pipeline.validation import validated

PROMPT_FIELDS = ("instruction", "input")
FIELD = re.compile(r"\{([a-z_]+)\}")
_SHIPPED = resources.files("delift_pipeline") / "defaults" / "templates"

Spans = dict[str, tuple[int, int]]
"""Field -> where its text lies, [start, stop) in characters."""


class Demonstration(BaseModel):
    """How a demonstration is written.

    Attributes:
        prompt: Its own prompt pieces; None for those of the target.
        answer: Its own answer pieces; None for those of the target.
        close: Text after its answer.
        end_of_text: Whether the end-of-text token closes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    close: str = ""
    end_of_text: bool = False


class Template(BaseModel):
    """A prompt template; `defaults/templates/plain.yaml` explains every field.

    Attributes:
        name: What a user calls it.
        version: Counted up with every change of wording.
        prompt: Pieces of the target's prompt, joined as they are.
        answer: Pieces of the answer; the end-of-text token follows.
        alone: Text in the place of the demonstrations where there are none.
        lead: Text before the first demonstration.
        demonstration: How a demonstration is written.
        chat: Whether prompt and answer are the messages of the model's own chat template.
        system: The system message of a chat; empty for none.
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
    def _fields_once(self) -> "Template":
        if faults := _field_faults(self) + _chat_faults(self):
            raise ValueError("; ".join(faults))
        return self

    @property
    def digest(self) -> str:
        """Digest of everything that decides the text; part of the fingerprint."""
        unused = set() if self.chat else {"chat", "system"}
        return digest_json(self.model_dump(mode="json", exclude=unused))

    @property
    def demonstration_prompt(self) -> tuple[str, ...]:
        """The prompt pieces of a demonstration."""
        return self.demonstration.prompt or self.prompt

    @property
    def demonstration_answer(self) -> tuple[str, ...]:
        """The answer pieces of a demonstration."""
        return self.demonstration.answer or self.answer


def _field_faults(template: Template) -> list[str]:
    parts = {
        "prompt": (template.prompt, PROMPT_FIELDS),
        "answer": (template.answer, ("output",)),
        "demonstration.prompt": (template.demonstration_prompt, PROMPT_FIELDS),
        "demonstration.answer": (template.demonstration_answer, ("output",)),
        "alone": ((template.alone,), ()),
        "lead": ((template.lead,), ()),
        "demonstration.close": ((template.demonstration.close,), ()),
    }
    faults = []
    for name, (pieces, expected) in parts.items():
        found = FIELD.findall("".join(pieces))
        if sorted(found) != sorted(expected):
            wanted = " and ".join(f"{{{field}}}" for field in expected) or "no field"
            faults.append(f"{name} holds {found or 'no field'} where {wanted} must stand once")
    return faults


def _chat_faults(template: Template) -> list[str]:
    if not template.chat:
        return ["system is read where chat is true"] if template.system else []
    own = (("alone", ""), ("lead", ""), ("demonstration", Demonstration()))
    return [
        f"{name} is the chat template's own where chat is true; leave it out"
        for name, nothing in own
        if getattr(template, name) != nothing
    ]


def shipped_templates() -> list[str]:
    """The names of the templates that come with the package."""
    names = (Path(entry.name) for entry in _SHIPPED.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def load_template(name_or_path: str) -> Template:
    """Load a shipped template by name, or any template from a YAML file.

    Raises:
        Refused: there is no such template or it is not valid; every fault is named.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in shipped_templates():
        path = Path(str(_SHIPPED / f"{name_or_path}.yaml"))
    if not path.is_file():
        known = ", ".join(shipped_templates())
        reason = f"no template {name_or_path!r}: use {known} or a YAML file"
        raise Refused(Fault(reason, field="template"))
    text = read_text(path, name_or_path)
    return validated(Template, parse_yaml(text, name_or_path).value, file=name_or_path)
