"""Names in plain words: functions are verbs or say what they return; some words stay out."""

import ast
import re
from collections.abc import Iterator

from tests.test_layers import ROOT, modules_of

RETIRED = frozenset(
    "account asked crew dear found given go held jury kept kin laid look made panel said settle "
    "shown sound standing told turn untold wanted".split()
)
"""Words of the project's first version that say nothing about the thing named."""
PREPOSITIONS = frozenset("as at by for from in into of on only to when where with".split())
NOT_PARTICIPLES = frozenset("embed feed need seed speed".split())
IRREGULAR = frozenset(
    "begun bound built chosen done drawn gone hidden left lost meant seen sent spent taken "
    "written".split()
)


def words_of(name: str) -> list[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def names_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a module names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def is_participle(name: str) -> bool:
    """Whether a function is named by a participle alone, or by one and what follows from it.

    "stored_versions" says what is returned and is fine; "stored" and "stored_by" are not.
    """
    first, *rest = words_of(name)
    participle = first in IRREGULAR or (first.endswith("ed") and first not in NOT_PARTICIPLES)
    return participle and (not rest or rest[0] in PREPOSITIONS)


def test_no_name_has_a_word_that_was_retired() -> None:
    names = [
        f"{module}:{line}: {name}"
        for module, tree in modules_of(ROOT).items()
        for line, name in names_in(tree)
        if RETIRED & set(words_of(name)) or name == "Line"
    ]
    assert not names, "\n".join(names)


def test_no_function_is_named_by_a_participle_alone() -> None:
    names = [
        f"{module}:{node.lineno}: {node.name}"
        for module, tree in modules_of(ROOT).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and words_of(node.name) and is_participle(node.name)
    ]
    assert not names, "\n".join(names)


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse("class Crew:\n    def told(self, wanted): found = wanted")
    flagged = {name for _, name in names_in(tree) if RETIRED & set(words_of(name))}
    assert flagged == {"Crew", "told", "wanted", "found"}
    assert is_participle("_scored") and is_participle("applied_to")
    assert not is_participle("stored_versions") and not is_participle("read_block")
