"""A model's own chat template, taken apart: what it writes around texts, never the texts.

The template (Jinja, as `tokenizer.apply_chat_template` reads it) is rendered around stand-ins and
cut at them. Records are put in their places afterwards and are never rendered, so that no template
can re-format them and nothing in them is read as a special token. A template that does not write a
text as it is given, or writes a turn differently by its place among the turns, is refused. One that
takes white space off both ends of a text is noticed, and the record's own is kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.hashing import digest_json

DATE = "26 Jul 2024"
"""What a template that asks for today's date gets: scores must not change overnight."""
FILE = "chat_template.jinja"
# The second stand-in shows whether a template changes markup, quotes, case, blanks or letters.
_PLAIN, _TRICKY = "{role}q{place}Zx", 'Say <b>{role} {place}</b>,\n\n  "é" & {{ x }} %d\tEnd'
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Dialogue:
    """What a chat template writes around the texts of its turns.

    Attributes:
        opening: Before the first user's text; in two parts around a system message.
        system: The system message, or empty.
        shown_middle: Between a user's text and its answer, in a demonstration.
        shown_lead: White space in front of that answer that a generation would begin with.
        between: Between a demonstration's answer and the next user's text.
        middle: Between the last user's text and the answer that is scored.
        lead: White space in front of that answer that a generation would begin with.
        end: After the last answer.
        trimmed: Roles whose texts the template takes white space off.
    """

    opening: tuple[str, str]
    system: str
    shown_middle: str
    shown_lead: str
    between: str
    middle: str
    lead: str
    end: str
    trimmed: tuple[str, ...] = ()


def chat_source(folder: Path) -> str | None:
    """The default chat template in a model's folder, as transformers finds it; None without one."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text("utf-8")
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text("utf-8")).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        return next((one["template"] for one in found if one["name"] == "default"), None)
    return found


def chat_digest(source: str | None) -> str:
    """Digest of what the wording follows from, for the fingerprint.

    Raises:
        Refused: there is no chat template.
    """
    return digest_json({"source": _present(source), "date": DATE})


def take_apart(source: str | None, names: Mapping[str, Any], system: str = "") -> Dialogue:
    """Find out what a chat template writes around texts.

    Special tokens go by the names that templates use (`tokenizer.special_tokens_map`).

    Raises:
        Refused: there is no template, it refuses such a dialogue, or it cannot be taken apart.
    """
    writer = _Writer(_present(source), names, system)
    one, two, three = map(writer.around, (1, 2, 3))
    if one != [two[0], *two[-2:]] or three != [*two[:3], *two[1:]]:
        raise _refused("writes a turn differently by its place among the turns")
    opening, middle, end = one
    texts = writer.texts(_PLAIN, 1)
    generation = _cut(writer.render(texts[:1], add_generation_prompt=True), texts[:1])[1]
    # White space between where a generation starts and the answer.
    rest = middle.removeprefix(generation)
    lead = rest if generation and middle.startswith(generation) and rest.isspace() else ""
    shown_lead = lead if two[1] == middle else ""
    before, _, after = opening.partition(writer.system) if system else (opening, "", "")
    padded = [f" \n{text}\n " for text in texts]
    whole = writer.render(padded)
    return Dialogue(
        opening=(before, after),
        system=system,
        shown_middle=two[1].removesuffix(shown_lead),
        shown_lead=shown_lead,
        between=two[2],
        middle=middle.removesuffix(lead),
        lead=lead,
        end=end,
        trimmed=tuple(r for r, text in zip(_ROLES, padded, strict=True) if text not in whole),
    )


class _Writer:
    """Renders dialogues of stand-ins and cuts them."""

    def __init__(self, source: str, names: Mapping[str, Any], system: str) -> None:
        self._source, self._names = source, dict(names)
        self.system = "sysq0Zx" if system else ""

    def around(self, turns: int) -> list[str]:
        """What stands before, between and after the texts of a whole dialogue."""
        texts = (self.texts(kind, turns) for kind in (_PLAIN, _TRICKY))
        found, again = (_cut(self.render(own), own) for own in texts)
        if found != again:
            raise _refused("writes other words around other texts")
        return found

    def texts(self, kind: str, turns: int) -> list[str]:
        """Stand-ins for the texts of a dialogue."""
        pairs = product(map(str, range(turns)), _ROLES)
        return [kind.replace("{role}", role).replace("{place}", place) for place, role in pairs]

    def render(self, texts: Sequence[str], add_generation_prompt: bool = False) -> str:
        """The whole dialogue; with `add_generation_prompt` an answer is to follow."""
        from transformers.utils.chat_template_utils import render_jinja_template

        turns = [("system", self.system)] if self.system else []
        turns += zip(_ROLES * len(texts), texts, strict=False)
        try:
            (whole,), _ = render_jinja_template(
                [[{"role": role, "content": text} for role, text in turns]],
                chat_template=self._source,
                add_generation_prompt=add_generation_prompt,
                strftime_now=datetime.strptime(DATE, "%d %b %Y").strftime,
                **self._names,
            )
        except TemplateSyntaxError as error:
            raise _refused(f"cannot be read ({_first_line(error)})") from error
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            asked = "a dialogue with a system message" if self.system else "a plain dialogue"
            raise _refused(f"refuses {asked} ({_first_line(error)})") from error
        if self.system and whole.count(self.system) != 1:
            raise _refused("does not write the system message as it is given")
        return whole


def _cut(whole: str, texts: Sequence[str]) -> list[str]:
    parts = []
    for text in texts:
        before, found, whole = whole.partition(text)
        if not found:
            raise _refused("does not write a text as it is given")
        parts.append(before)
    if any(text in whole for text in texts):
        raise _refused("writes a text more than once")
    return [*parts, whole]


def _present(source: str | None) -> str:
    if source is None:
        raise _refused("", "this model has no chat template")
    return source


def _refused(why: str, what: str = "the model's chat template ") -> Refused:
    instead = "use plain, paper, or a YAML file of your own"
    return Refused(f"{what}{why}; {instead}", field="template")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
