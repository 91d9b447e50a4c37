"""YAML text as values, with the line that every field stands on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from delift_pipeline.core.errors import Fault, Refused


@dataclass(frozen=True)
class YamlDocument:
    """What a YAML text holds.

    Attributes:
        value: The values, as `yaml.safe_load` gives them.
        lines: The line of each field, by its keys joined with dots.
        repeated: One fault for each key that is given twice in a mapping; YAML keeps the last.
    """

    value: Any
    lines: dict[str, int]
    repeated: tuple[Fault, ...]


def read_text(path: Path, file: str) -> str:
    """The text of a YAML file.

    Raises:
        Refused: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = "This is not UTF-8 text. Save the file as UTF-8."
        raise Refused(Fault(reason, file, line)) from error


def parse_yaml(text: str, file: str) -> YamlDocument:
    """The values of a YAML text and where they stand.

    Raises:
        Refused: the text is not YAML; the fault names the line.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        keys = list(_keys(root))
        value = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        reason = f"This is not valid YAML: {problem}. Correct it."
        raise Refused(Fault(reason, file, mark.line + 1 if mark else None)) from error
    lines, repeated = dict[str, int](), list[Fault]()
    for field, line in keys:
        if field in lines:
            reason = f"This is given twice, first on line {lines[field]}. Keep one of them."
            repeated.append(Fault(reason, file, line, field))
        lines.setdefault(field, line)
    return YamlDocument(value, lines, tuple(repeated))


def _keys(node: Any, parent: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, int]]:
    """Every key of the mappings in a node, with its line; an alias of a node above ends there."""
    if not isinstance(node, yaml.MappingNode) or id(node) in above:
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        field = f"{parent}.{name}" if parent else name
        yield field, key.start_mark.line + 1
        if field not in seen:
            yield from _keys(value, field, (*above, id(node)))
        seen.add(field)
