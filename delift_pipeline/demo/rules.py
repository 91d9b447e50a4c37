"""The rules of the demo world's tasks: seven families of rules over words.

A rule turns a *content* (the words of an input, each concept by its plain word) into an answer. The
base model knows the families. Which rule a mode word names can be learned only from records.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from delift_pipeline.demo import words as w

FAMILIES: tuple[str, ...] = ("lookup", "translate", "group", "order", "format", "shift", "who")
MAPPED: frozenset[str] = frozenset({"lookup", "translate", "group"})
"""Families whose answers are codes that a map assigns to concepts or categories."""

Content = tuple[str, ...]

OPERATIONS: dict[str, Callable[[Content], Content]] = {
    "copy": lambda words: words,
    "reverse": lambda words: words[::-1],
    "rotate": lambda words: words[1:] + words[:1],
    "swap": lambda words: (words[1], words[0], *words[2:]),
    "first": lambda words: words[:1],
    "last": lambda words: words[-1:],
    "double": lambda words: tuple(word for word in words for _ in range(2)),
}
SHIFTS: tuple[int, ...] = (-3, -2, -1, 1, 2, 3)
ALL_FORMS: tuple[str, ...] = (*w.CONCEPTS, *w.SYNONYMS.values())


@dataclass(frozen=True)
class Rule:
    """One rule of a family.

    Attributes:
        mode: The word that names the rule in an instruction.
        codes: For mapped families: concept (or, for `group`, category) -> code.
        operation: For `order`: a key of `OPERATIONS`.
        marks: For `format`: the marks that open, separate and close the list.
        step: For `shift`: the number that is added.
        style: For `who`: 0 to 3, the form of the answer.
        ending: For `who`: the code at the end of every answer.
    """

    family: str
    mode: str
    codes: dict[str, str] = field(default_factory=dict)
    operation: str = "copy"
    marks: tuple[str, str, str] = ("[", ",", "]")
    step: int = 1
    style: int = 0
    ending: str = ""


def draw_map(keys: Sequence[str], codes: Sequence[str], rng: random.Random) -> dict[str, str]:
    """Give each key a different random code."""
    return dict(zip(keys, rng.sample(list(codes), len(keys)), strict=True))


def draw_rule(family: str, mode: str, rng: random.Random, keys: int | None = None) -> Rule:
    """Draw a rule; `mode` is the mode word that names it.

    A map has `keys` concepts or categories; 2 to 5 (`group`: 2 or 3) by default.

    Raises:
        ValueError: the family is unknown.
    """
    if family in MAPPED:
        names, most = (tuple(w.CATEGORIES), 3) if family == "group" else (w.CONCEPTS, 5)
        drawn = rng.sample(names, keys or rng.randint(2, most))
        return Rule(family, mode, codes=draw_map(drawn, w.CODES, rng))
    if family == "order":
        return Rule(family, mode, operation=rng.choice(list(OPERATIONS)))
    if family == "format":
        marks = (rng.choice(w.OPENERS), rng.choice(w.SEPARATORS), rng.choice(w.CLOSERS))
        return Rule(family, mode, marks=marks)
    if family == "shift":
        return Rule(family, mode, step=rng.choice(SHIFTS))
    if family == "who":
        return Rule(family, mode, style=rng.randint(0, 3), ending=rng.choice(w.CODES))
    raise ValueError(f"{family!r} is not a family. Choose from: {', '.join(FAMILIES)}")


def draw_content(rule: Rule, rng: random.Random, forms: Sequence[str] = ALL_FORMS) -> Content:
    """Draw an input for a rule; all possible inputs are equally likely.

    Lists and questions use the words in `forms`, at least four.
    """
    if rule.family == "lookup":
        return (rng.choice(list(rule.codes)),)
    if rule.family == "translate":
        return tuple(rng.sample(list(rule.codes), rng.randint(1, min(3, len(rule.codes)))))
    if rule.family == "group":
        return (rng.choice(w.CATEGORIES[rng.choice(list(rule.codes))]),)
    if rule.family in ("order", "format"):
        least = 2 if rule.family == "order" else 1
        return tuple(rng.sample(forms, rng.randint(least, least + 2)))
    if rule.family == "shift":
        return (str(rng.randint(3, 16)),)
    first, second = rng.sample(w.NAMES, 2)
    thing, other = rng.sample(forms, 2)
    question_thing = rng.choice((thing, other))
    story = f"{first} has the {thing} . {second} has the {other} . who has the {question_thing} ?"
    return tuple(story.split())


def answer(rule: Rule, content: Content) -> str:
    """Return the right answer to a content, as text.

    Raises:
        KeyError: the map has no code for a concept of the content.
    """
    if rule.family == "group":
        return " ".join(rule.codes[w.CATEGORY_OF[word]] for word in content)
    if rule.family in MAPPED:
        return " ".join(rule.codes[word] for word in content)
    if rule.family == "order":
        return " ".join(OPERATIONS[rule.operation](content))
    if rule.family == "format":
        opener, separator, closer = rule.marks
        return f"{opener} {f' {separator} '.join(content)} {closer}"
    if rule.family == "shift":
        return str(int(content[0]) + rule.step)
    thing = content[-2]
    person = content[0] if content[3] == thing else content[5]
    styles = (person, f"it is {person}", f"{person} has the {thing}", f"i say {person}")
    return f"{styles[rule.style]} {rule.ending}"


def draw_instruction(rule: Rule, rng: random.Random) -> str:
    """Draw a wording of the rule's instruction, in about half of the cases with a greeting."""
    greeting = rng.choice(w.GREETINGS) if rng.random() < 0.4 else ""
    address = rng.choice(w.ADDRESSES) if rng.random() < 0.2 else ""
    wording = rng.choice(w.TEMPLATES[rule.family]).format(mode=rule.mode)
    return " ".join(f"{greeting} {address} {wording}".split())


def draw_input(rule: Rule, content: Content, rng: random.Random) -> str:
    """Return a content as text; in mapped families each concept by one of its two words."""
    if rule.family not in MAPPED:
        return " ".join(content)
    return " ".join(rng.choice((word, w.SYNONYMS[word])) for word in content)
