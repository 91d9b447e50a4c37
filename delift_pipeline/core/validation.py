"""Reading and validating what users write: YAML with line numbers, and errors as faults."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from delift_pipeline.core.errors import Fault, InputError

Validated = TypeVar("Validated", bound=BaseModel)

LONGEST_VALUE = 80
# Messages of these types need no value: it is missing, or the message already names it.
_SPEAK_FOR_THEMSELVES = ("missing", "conflict", "value_error")


def validate(
    model: type[Validated],
    value: Any,
    *,
    file: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Validated:
    """Validate a value as a pydantic model and return it. `faults_of` explains the arguments.

    Raises:
        InputError: one fault for each field that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InputError(*faults_of(error, model, file=file, names=names)) from error


def faults_of(
    error: ValidationError,
    model: type[BaseModel],
    *,
    file: str | None = None,
    parent: str = "",
    names: Mapping[str, str] | None = None,
) -> list[Fault]:
    """Return one fault for each field that pydantic refused.

    Args:
        error: What pydantic raised for the model.
        model: The model.
        file: The file that the values come from.
        parent: The field that contains the values, such as `arms.NAME`.
        names: Field -> the user's name for it, where they differ.
    """
    faults = []
    for item in error.errors():
        field = ".".join(str(part) for part in (parent, *item["loc"]) if part != "")
        reason = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            reason = _unknown_field(item["loc"], model)
        elif item["type"] not in _SPEAK_FOR_THEMSELVES:
            value = repr(item["input"])
            text = value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}..."
            reason = f"{reason} (got {text})"
        faults.append(Fault(reason, file, field=(names or {}).get(field, field)))
    return faults


def unknown_name(name: str, known: list[str]) -> str:
    """Return the sentence about an unknown name, with the most similar and all known names."""
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    listed = f"Use one of: {', '.join(known)}." if known else "There is nothing to set here."
    return f"{name!r} is unknown{guess} {listed}"


def _unknown_field(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    owner: type[BaseModel] | None = model
    for part in loc[:-1]:
        if owner is not None and part in owner.model_fields:
            owner = _model_in(owner.model_fields[str(part)].annotation)
    name = str(loc[-1])
    return f"{name!r} is unknown" if owner is None else unknown_name(name, list(owner.model_fields))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the only model in a field's type, such as `Options | None` or `list[Options]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = {model for part in get_args(annotation) if (model := _model_in(part))}
    return models.pop() if len(models) == 1 else None


def check_webhook(url: str) -> str:
    """Return the address if alerts can be posted to it.

    Raises:
        InputError: it is not an http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        reason = f"{url!r} is not an http or https address. Give one such as https://host/path."
        raise InputError(reason, field="webhook")
    return url


@dataclass(frozen=True)
class YamlDocument:
    """The values of a YAML text, as `yaml.safe_load` returns them, and their lines.

    Attributes:
        lines: Keys joined with dots -> the line of the field.
        repeated: One fault for each key that a mapping has twice; YAML would keep the last.
    """

    value: Any
    lines: dict[str, int]
    repeated: tuple[Fault, ...]


def read_text(path: Path, file: str) -> str:
    """Read the text of a YAML file.

    Raises:
        InputError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        reason = "This is not UTF-8 text. Save the file as UTF-8."
        raise InputError(Fault(reason, file, line)) from error


def parse_yaml(text: str, file: str) -> YamlDocument:
    """Parse a YAML text.

    Raises:
        InputError: the text is not YAML; the fault names the line.
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
        raise InputError(Fault(reason, file, mark.line + 1 if mark else None)) from error
    lines, repeated = dict[str, int](), list[Fault]()
    for field, line in keys:
        if field in lines:
            reason = f"This is given twice, first on line {lines[field]}. Keep one of them."
            repeated.append(Fault(reason, file, line, field))
        lines.setdefault(field, line)
    return YamlDocument(value, lines, tuple(repeated))


def _keys(node: Any, parent: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, int]]:
    """Yield every key below a node with its line. An alias of a node above is not followed."""
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
