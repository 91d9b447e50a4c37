"""The shapes in which instruction data comes, and a row of each as one draft of a record.

| shape | instruction | input (optional) | output |
|---|---|---|---|
| alpaca | `instruction` | `input` | `output` |
| dolly | `instruction` | `context` | `response` |
| chat | from `messages`: see `records.chat` | | |
| prompt/response | `prompt` | `input` | `response` |
| prompt/completion | `prompt` | `input` | `completion` |
| question/answer | `question` | `context` | `answer` |

Every shape may also have `source_id` (or `id`), `source` and `task`: text or whole numbers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.chat import Problems, conversation
from delift_pipeline.records.formats import NOT_UTF8, Row, encodable, type_name
from delift_pipeline.records.schema import TEXT_FIELDS

METADATA = {"source_id": ("source_id", "id"), "source": ("source",), "task": ("task",)}
_MAPPABLE = (*TEXT_FIELDS, "messages", *METADATA)


@dataclass(frozen=True, slots=True)
class Draft:
    """A row's texts before it has an identity; None where the row does not say."""

    instruction: str
    input: str
    output: str
    source_id: str | None
    source: str | None
    task: str | None


@dataclass(frozen=True)
class Shape:
    """Which column holds what.

    Attributes:
        name: As reported.
        columns: Field -> the file's column.
    """

    name: str
    columns: Mapping[str, str]

    @cached_property
    def required(self) -> frozenset[str]:
        """The columns a row must have."""
        needed = ("instruction", "output", "messages")
        return frozenset(self.columns[field] for field in needed if field in self.columns)

    def draft(self, row: Mapping[str, Any]) -> tuple[Draft | None, Problems]:
        """The row's draft, or None and every fault as (column, reason)."""
        texts, problems = self._conversation(row) if self._is_chat else self._texts(row)
        problems = problems + _content_problems(texts, self.columns)
        source_id, source, task = (
            _metadata(row, self._metadata(field), problems) for field in METADATA
        )
        if problems:
            return None, problems
        instruction, input, output = (texts[field] for field in TEXT_FIELDS)
        return Draft(instruction, input, output, source_id, source, task), []

    @property
    def _is_chat(self) -> bool:
        return "messages" in self.columns

    def _conversation(self, row: Mapping[str, Any]) -> tuple[dict[str, str], Problems]:
        column = self.columns["messages"]
        if column not in row:
            return {}, [(column, "missing")]
        return conversation(row[column], column)

    def _texts(self, row: Mapping[str, Any]) -> tuple[dict[str, str], Problems]:
        texts: dict[str, str] = {}
        problems: Problems = []
        for field in TEXT_FIELDS:
            column = self.columns.get(field, field)
            value = row.get(column)
            if field == "input" and value is None:
                texts[field] = ""
            elif column not in row:
                problems.append((column, "missing"))
            elif not isinstance(value, str):
                problems.append((column, f"must be text, not {type_name(value)}"))
            else:
                texts[field] = value
        return texts, problems

    def _metadata(self, field: str) -> tuple[str, ...]:
        return (self.columns[field],) if field in self.columns else METADATA[field]


def _shape(name: str, instruction: str, input: str, output: str) -> Shape:
    return Shape(name, {"instruction": instruction, "input": input, "output": output})


SHAPES = (
    _shape("alpaca", "instruction", "input", "output"),
    _shape("dolly", "instruction", "context", "response"),
    Shape("chat", {"messages": "messages"}),
    _shape("prompt/response", "prompt", "input", "response"),
    _shape("prompt/completion", "prompt", "input", "completion"),
    _shape("question/answer", "question", "context", "answer"),
)


def _content_problems(texts: Mapping[str, str], columns: Mapping[str, str]) -> Problems:
    """Faults of the texts that are there: empty ones, and what no tokenizer should meet."""
    problems: Problems = []
    place = {field: columns.get(field, columns.get("messages", field)) for field in TEXT_FIELDS}
    for field, text in texts.items():
        if "\x00" in text:
            problems.append((place[field], f"NUL character (number {text.index(chr(0)) + 1})"))
        if not encodable(text):
            problems.append((place[field], f"{NOT_UTF8}: half of a surrogate pair"))
    prompt = [texts[field] for field in ("instruction", "input") if field in texts]
    if len(prompt) == 2 and not any(text.strip() for text in prompt):
        problems.append((place["instruction"], "empty, and so is the input"))
    if not texts.get("output", "-").strip():
        problems.append((place["output"], "empty"))
    return problems


def _metadata(row: Mapping[str, Any], columns: Sequence[str], problems: Problems) -> str | None:
    """The first of `columns` that the row fills, as text; empty text counts as not filled."""
    for column in columns:
        value = row.get(column)
        if value is None or value == "":
            continue
        text = str(value)
        if not isinstance(value, str | int) or isinstance(value, bool):
            problems.append((column, f"must be text or a whole number, not {type_name(value)}"))
        elif "\x00" in text or not encodable(text):
            problems.append((column, f"NUL character or {NOT_UTF8}"))
        return text
    return None


def mapped_shape(mapping: Mapping[str, str]) -> Shape:
    """The shape a user's mapping (field -> column) describes.

    A field that is not named stands in the column of its own name.

    Raises:
        Refused: the mapping names fields that records do not have.
    """
    fields = {"source_id" if field == "id" else field: name for field, name in mapping.items()}
    known = ", ".join(_MAPPABLE)
    unknown = [field for field in fields if field not in _MAPPABLE]
    if unknown:
        reason = f"no field of a record; a mapping can name {known}"
        raise Refused(*(Fault(reason, field=field) for field in unknown))
    if "messages" in fields and (both := [field for field in TEXT_FIELDS if field in fields]):
        raise Refused(Fault(f"map either messages or {', '.join(both)}", field="messages"))
    texts = {} if "messages" in fields else {field: field for field in TEXT_FIELDS}
    return Shape("mapping", texts | fields)


def recognise(rows: Sequence[Row], file: str) -> tuple[Shape | None, list[Fault]]:
    """The one shape of a file's readable rows, or why there is none.

    Returns:
        The shape, and the faults that concern the whole file.
    """
    shapes = [_shape_of(row.value) for row in rows if row.value is not None]
    counts = Counter(shape.name for shape in shapes if shape)
    if not counts:
        return None, [Fault(f"shape not recognised: {_found(rows)}; {_known()}", file)]
    shape = next(known for known in SHAPES if known.name == counts.most_common(1)[0][0])
    others = [
        (row, other)
        for row in rows
        if row.value is not None and not shape.required <= row.value.keys()
        if (other := _shape_of(row.value))
    ]
    if not others:
        return shape, []
    row, other = others[0]
    reason = (
        f"mixed shapes: {len(others)} of {len(rows)} rows are not {shape.name} but, here first, "
        f"{other.name} ({_found([row])}); split the file, or: {_known()}"
    )
    return shape, [Fault(reason, file, row.line)]


def _shape_of(value: Mapping[str, Any]) -> Shape | None:
    return next((shape for shape in SHAPES if shape.required <= value.keys()), None)


def missing_columns(shape: Shape, rows: Sequence[Row], file: str) -> list[Fault]:
    """Faults for columns of a mapping that no row of the file has."""
    present = {column for row in rows if row.value is not None for column in row.value}
    wanted = dict(shape.columns)
    if wanted.get("input") == "input":  # Optional, unless the mapping names another column.
        del wanted["input"]
    return [
        Fault(f"the file has no column {name!r}; {_found(rows)}", file, field=field)
        for field, name in wanted.items()
        if name not in present
    ]


def _found(rows: Sequence[Row]) -> str:
    columns = dict.fromkeys(column for row in rows if row.value for column in row.value)
    return f"columns found: {', '.join(columns) or 'none'}"


def _known() -> str:
    shapes = (f"{shape.name} ({', '.join(sorted(shape.required))})" for shape in SHAPES)
    return f"recognised are {'; '.join(shapes)}; or give a column mapping"
