"""Find out what a model's own chat template writes around the texts of a dialogue.

The template (Jinja, as `tokenizer.apply_chat_template` reads it) is rendered with placeholders, and
the result is split at them. The texts of records later replace the placeholders and are never
rendered, so no template can change them and nothing in them is read as a special token. A template
is refused if it changes a placeholder, or if what it writes for a turn depends on the turn's
position. A template may strip white space from both ends of a text: the record keeps its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_json

TEMPLATE_DATE = "26 Jul 2024"
"""The date that a template gets if it asks for today's: scores must not change overnight."""
CHAT_TEMPLATE_FILE = "chat_template.jinja"
_PLACEHOLDERS = ("{role}q{place}Zx", 'Say <b>{role} {place}</b>,\n\n  "é" & {{ x }} %d\tEnd')
"""The second one shows whether a template changes markup, quotes, case, blanks or letters."""
_ROLES = ("user", "assistant")
_INSTEAD = "Use plain, paper, or a YAML file of your own."


@dataclass(frozen=True)
class DialogueWording:
    """What a chat template writes around the texts of its turns.

    Attributes:
        opening: What stands before the first user's text, in two parts around a system message.
        system: The system message; it may be empty.
        demonstration_middle: What stands between user text and answer in a demonstration.
        demonstration_lead: White space before that answer that the model itself would generate.
        between: What stands between a demonstration's answer and the next user's text.
        middle: What stands between the last user's text and the answer that is scored.
        lead: White space before the scored answer that the model itself would generate.
        end: What stands after the last answer.
        trimmed_roles: Roles from whose texts the template strips white space.
    """

    opening: tuple[str, str]
    system: str
    demonstration_middle: str
    demonstration_lead: str
    between: str
    middle: str
    lead: str
    end: str
    trimmed_roles: tuple[str, ...] = ()


def read_chat_template(folder: Path) -> str | None:
    """Return the default chat template in a model's folder, as transformers finds it, or None."""
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        return (folder / CHAT_TEMPLATE_FILE).read_text("utf-8")
    path = folder / "tokenizer_config.json"
    template = json.loads(path.read_text("utf-8")).get("chat_template") if path.is_file() else None
    if isinstance(template, list):
        return next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that a model's files name, by the names that templates use.

    They are those of `tokenizer.special_tokens_map`, read without loading the tokenizer.
    """
    tokens: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        for key, value in (json.loads(path.read_text("utf-8")) if path.is_file() else {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return tokens


def reason_unusable(source: str, tokens: Mapping[str, str]) -> str | None:
    """Return why a chat template cannot be used, without a full stop, or None if it can.

    The arguments are those of `parse_chat_template`.
    """
    return _reason_unusable(source, tuple(sorted(tokens.items())))


@lru_cache(maxsize=64)
def _reason_unusable(source: str, tokens: tuple[tuple[str, str], ...]) -> str | None:
    try:
        parse_chat_template(source, dict(tokens))
    except InputError as refused:
        return refused.faults[0].reason.removesuffix(f". {_INSTEAD}")
    return None


def chat_template_digest(source: str | None) -> str:
    """Return a digest of everything that decides the wording, for the fingerprint.

    Raises:
        InputError: The model has no chat template.
    """
    return digest_json({"source": _require_source(source), "date": TEMPLATE_DATE})


def parse_chat_template(
    source: str | None, names: Mapping[str, Any], system: str = ""
) -> DialogueWording:
    """Return what a chat template writes around texts.

    Args:
        source: The template's Jinja source.
        names: Special tokens by the names that templates use (`tokenizer.special_tokens_map`).
        system: The system message; it may be empty.

    Raises:
        InputError: The model has no template, or its template cannot be used (see the module).
    """
    renderer = _PlaceholderRenderer(_require_source(source), names, system)
    # Dialogues of one, two and three turns have to repeat the same words around their texts.
    one, two, three = map(renderer.surroundings, (1, 2, 3))
    if one != [two[0], *two[-2:]] or three != [*two[:3], *two[1:]]:
        raise _refusal("writes a turn differently by its place among the turns")
    opening, middle, end = one
    texts = renderer.placeholders(_PLACEHOLDERS[0], 1)
    question = renderer.render(texts[:1], add_generation_prompt=True)
    _, generation = _split_at_texts(question, texts[:1])
    # The template may write white space after the place where the model starts to generate.
    rest = middle.removeprefix(generation)
    lead = rest if generation and middle.startswith(generation) and rest.isspace() else ""
    demonstration_lead = lead if two[1] == middle else ""
    before, _, after = opening.partition(renderer.system) if system else (opening, "", "")
    padded = [f" \n{text}\n " for text in texts]
    whole = renderer.render(padded)
    return DialogueWording(
        opening=(before, after),
        system=system,
        demonstration_middle=two[1].removesuffix(demonstration_lead),
        demonstration_lead=demonstration_lead,
        between=two[2],
        middle=middle.removesuffix(lead),
        lead=lead,
        end=end,
        trimmed_roles=tuple(r for r, text in zip(_ROLES, padded, strict=True) if text not in whole),
    )


class _PlaceholderRenderer:
    """Renders dialogues of placeholders and splits them."""

    def __init__(self, source: str, names: Mapping[str, Any], system: str) -> None:
        self._source, self._names = source, dict(names)
        self.system = "sysq0Zx" if system else ""

    def surroundings(self, turns: int) -> list[str]:
        """Return what stands before, between and after the texts of a dialogue."""
        texts = (self.placeholders(pattern, turns) for pattern in _PLACEHOLDERS)
        plain, tricky = (_split_at_texts(self.render(own), own) for own in texts)
        if plain != tricky:
            raise _refusal("writes other words around other texts")
        return plain

    def placeholders(self, pattern: str, turns: int) -> list[str]:
        """Return a different text for each message: user, assistant, user, assistant, ..."""
        pairs = product(map(str, range(turns)), _ROLES)
        return [pattern.replace("{role}", role).replace("{place}", place) for place, role in pairs]

    def render(self, texts: Sequence[str], add_generation_prompt: bool = False) -> str:
        """Render a dialogue; with `add_generation_prompt` it ends where an answer begins."""
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [("system", self.system)] if self.system else []
        turns += zip(_ROLES * len(texts), texts, strict=False)
        try:
            (whole,), _ = render_jinja_template(
                [[{"role": role, "content": text} for role, text in turns]],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                strftime_now=datetime.strptime(TEMPLATE_DATE, "%d %b %Y").strftime,
                **self._names,
            )
        except TemplateSyntaxError as error:
            raise _refusal(f"cannot be read ({_first_line(error)})") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            dialogue = "a dialogue with a system message" if self.system else "a plain dialogue"
            raise _refusal(f"refuses {dialogue} ({_first_line(error)})") from error
        if self.system and whole.count(self.system) != 1:
            raise _refusal("does not write the system message as it is given")
        return whole


def _split_at_texts(whole: str, texts: Sequence[str]) -> list[str]:
    """Return what stands before, between and after the texts (one part more than texts)."""
    parts = []
    for text in texts:
        before, separator, whole = whole.partition(text)
        if not separator:
            raise _refusal("does not write a text as it is given")
        parts.append(before)
    if any(text in whole for text in texts):
        raise _refusal("writes a text more than once")
    return [*parts, whole]


def _require_source(source: str | None) -> str:
    if source is None:
        raise _refusal("", "This model has no chat template")
    return source


def _refusal(why: str, what: str = "The model's chat template ") -> InputError:
    return InputError(f"{what}{why}. {_INSTEAD}", field="template")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
