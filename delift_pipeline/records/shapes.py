"""The shapes of instruction data: which columns hold a record's fields.

| shape | instruction | input (optional) | output |
|---|---|---|---|
| alpaca | `instruction` | `input` | `output` |
| dolly | `instruction` | `context` | `response` |
| chat | from `messages`: see `split_conversation` | | |
| prompt/response | `prompt` | `input` | `response` |
| prompt/completion | `prompt` | `input` | `completion` |
| question/answer | `question` | `context` | `answer` |

Every shape may also have `source_id` (or `id`), `source` and `task`: text or whole numbers.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from delift_pipeline.core.errors import Fault
from delift_pipeline.records.formats import NOT_UTF8, Row, is_encodable, type_name
from delift_pipeline.records.schema import TEXT_FIELDS

RowProblems = list[tuple[str, str]]
"""The faults of a row as (column, reason)."""
MISSING = "missing"
METADATA = {"source_id": ("source_id", "id"), "source": ("source",), "task": ("task",)}
_TEXTS = (*TEXT_FIELDS, "messages")
_MAPPABLE = (*_TEXTS, *METADATA)
MOST_COLUMNS = 20
"""The largest number of columns that a message lists."""
_HINTS = {
    **dict.fromkeys(("object", "list"), "write it as text, for example with json.dumps"),
    **dict.fromkeys(("number", "true/false"), "put it in quotes"),
    "null": "fill it in",
}
"""What to do about a value that is not text, by its type."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The fields of a row before it has a record id; None where the row has no value."""

    instruction: str
    input: str
    output: str
    source_id: str | None
    source: str | None
    task: str | None


@dataclass(frozen=True, eq=False)
class Shape:
    """The column of each field (field -> column), and whether source ids are read."""

    name: str
    columns: Mapping[str, str]
    ids: bool = True

    @cached_property
    def required_columns(self) -> frozenset[str]:
        """The columns a row must have."""
        needed = ("instruction", "output", "messages")
        return frozenset(self.columns[field] for field in needed if field in self.columns)

    def draft(self, row: Mapping[str, Any]) -> tuple[Draft | None, RowProblems]:
        """Return the row's draft and no faults, or None and all of its faults."""
        texts, problems = self._texts(row)
        problems = problems + _content_problems(texts, self.columns)
        metadata = [_metadata(row, columns, problems) for columns in self._metadata_columns]
        if problems:
            return None, problems
        return Draft(*(texts[field] for field in TEXT_FIELDS), *metadata), []

    def _texts(self, row: Mapping[str, Any]) -> tuple[dict[str, str], RowProblems]:
        if "messages" in self.columns:
            column = self.columns["messages"]
            if column not in row:
                return {}, [(column, MISSING)]
            return split_conversation(row[column], column)
        texts: dict[str, str] = {}
        problems: RowProblems = []
        for field in TEXT_FIELDS:
            column = self.columns.get(field)
            if field == "input" and (column is None or row.get(column) is None):
                texts[field] = ""
            elif problem := _text_problem(row, column or field):
                problems.append((column or field, problem))
            else:
                texts[field] = row[column or field]
        return texts, problems

    @cached_property
    def _metadata_columns(self) -> list[tuple[str, ...]]:
        """The columns that may hold source id, source and task, without columns of texts."""
        texts = {column for field, column in self.columns.items() if field in _TEXTS}
        candidates: list[tuple[str, ...]] = []
        for field, columns in METADATA.items():
            mapped = (self.columns[field],) if field in self.columns else None
            usable = mapped or tuple(column for column in columns if column not in texts)
            candidates.append(usable if self.ids or field != "source_id" else ())
        return candidates


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


KNOWN_COLUMNS = frozenset(column for shape in SHAPES for column in shape.columns.values())
"""The columns that hold texts in any of the shapes."""


def _text_problem(row: Mapping[str, Any], column: str) -> str | None:
    """Return why a column cannot be read as text, or None if it can."""
    if column not in row:
        return MISSING
    kind = type_name(row[column])
    hint = f": {_HINTS[kind]}" if kind in _HINTS else ""
    return None if isinstance(row[column], str) else f"must be text, not {kind}{hint}"


def _content_problems(texts: Mapping[str, str], columns: Mapping[str, str]) -> RowProblems:
    """Return faults of a row's texts: empty ones, and characters that tokenizers cannot handle."""
    problems: RowProblems = []
    place = {field: columns.get(field, columns.get("messages", field)) for field in TEXT_FIELDS}
    for field, text in texts.items():
        if "\x00" in text:
            problems.append((place[field], f"NUL character (number {text.index(chr(0)) + 1})"))
        if not is_encodable(text):
            problems.append((place[field], f"{NOT_UTF8}: half of a surrogate pair"))
    if not any(texts.get(field, "-").strip() for field in ("instruction", "input")):
        problems.append((place["instruction"], "is empty, and so is the input. Fill one in."))
    if not texts.get("output", "-").strip():
        problems.append((place["output"], "is empty. Fill it in."))
    return problems


def _metadata(row: Mapping[str, Any], columns: Sequence[str], problems: RowProblems) -> str | None:
    """Return the first value in `columns` as text, or None; empty text counts as no value."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value == "" or value != value:  # pandas writes missing numbers as NaN
            continue
        text = str(value)
        if not isinstance(value, str | int) or isinstance(value, bool):
            description = text.lower() if isinstance(value, bool | float) else type_name(value)
            problems.append((column, f"must be text or a whole number, not {description}"))
        elif "\x00" in text or not is_encodable(text):
            problems.append((column, f"NUL character or {NOT_UTF8}"))
        return text
    return None


def mapping_faults(fields: Mapping[str, str]) -> list[Fault]:
    """Return the faults of a user's mapping (see `mapped_fields`).

    A text without a mapping is read from the column of its own name, unless another text is.
    """
    known = ", ".join(_MAPPABLE)
    reason = f"A record has no such field. A mapping can name {known}."
    if unknown := [field for field in fields if field not in _MAPPABLE]:
        return [Fault(reason, field=field) for field in unknown]
    if "messages" in fields and (both := [field for field in TEXT_FIELDS if field in fields]):
        return [Fault(f"Map either messages or {', '.join(both)}, not both.", field="messages")]
    reason = "The column of this name is mapped to another field. Map this field too."
    return [Fault(reason, field=field) for field in _mapping_shape(fields)[1]]


def mapped_fields(mapping: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping by the full names of fields: `id` is short for `source_id`."""
    return {"source_id" if field == "id" else field: name for field, name in mapping.items()}


def _mapping_shape(fields: Mapping[str, str]) -> tuple[Shape, list[str]]:
    """Return the shape of a mapping, and the required texts for which it has no column."""
    if "messages" in fields:
        return Shape("mapping", fields), []
    mapped = {column for field, column in fields.items() if field in TEXT_FIELDS}
    columns = {field: field for field in TEXT_FIELDS if field not in mapped} | dict(fields)
    return Shape("mapping", columns), [f for f in ("instruction", "output") if f not in columns]


def shape_of_file(
    rows: Sequence[Row], file: str, mapping: Mapping[str, str]
) -> tuple[Shape | None, list[Fault], frozenset[str]]:
    """Return the shape of a file's rows. A mapping applies as far as the file has its columns.

    Returns:
        The shape, the faults of the file as a whole, and the mapped fields that the file has.
    """
    present = {column for row in rows if row.value for column in row.value} if mapping else set()
    fields = {field: column for field, column in mapping.items() if column in present}
    if not fields.keys().isdisjoint(_TEXTS):
        shape, unplaced = _mapping_shape(fields)
        if not unplaced and shape.required_columns <= present:
            return shape, [], frozenset(fields)
        # The file has a mapped column for a text. Another shape would silently ignore it.
        needed = {f: name for f, name in shape.columns.items() if name in shape.required_columns}
        return None, missing_columns(needed, present, file), frozenset()
    shape = _recognise_shape(rows, file)
    if isinstance(shape, Fault):
        return None, missing_columns(mapping, present, file) or [shape], frozenset()
    metadata = {field: column for field, column in fields.items() if field in METADATA}
    return Shape(shape.name, {**shape.columns, **metadata}), [], frozenset(metadata)


def _recognise_shape(rows: Sequence[Row], file: str) -> Shape | Fault:
    """Return the shape that all readable rows of a file have, or a fault."""
    readable = [row for row in rows if row.value is not None]
    counts = Counter(shape for row in readable if (shape := _shape_of(row)))
    forms = (f"{one.name} ({', '.join(sorted(one.required_columns))})" for one in SHAPES)
    known = f"Use one of these: {'; '.join(forms)}. Or give a column mapping."
    if not counts:
        return Fault(f"The columns fit no known shape ({_describe_columns(rows)}). {known}", file)
    shape = counts.most_common(1)[0][0]
    unlike = (row for row in readable if not shape.required_columns <= (row.value or {}).keys())
    others = [(row, other) for row in unlike if (other := _shape_of(row))]
    if not others:
        return shape
    row, other = others[0]
    reason = (
        f"mixed shapes: {len(others)} of {len(rows)} rows are not {shape.name} but, here first, "
        f"{other.name} ({_describe_columns([row])}). Split the file. {known}"
    )
    return Fault(reason, file, row.line)


def _shape_of(row: Row) -> Shape | None:
    return next((one for one in SHAPES if one.required_columns <= (row.value or {}).keys()), None)


def missing_columns(mapping: Mapping[str, str], present: Collection[str], file: str) -> list[Fault]:
    """Return a fault for each column of a mapping that is not in a file."""
    known = _list_columns(sorted(present))
    missing = {field: name for field, name in mapping.items() if name not in present}
    hint = f"({known}). Correct the mapping."
    return [Fault(f"There is no column {missing[f]!r} {hint}", file, field=f) for f in missing]


def _describe_columns(rows: Sequence[Row]) -> str:
    return _list_columns(list(dict.fromkeys(column for row in rows for column in row.value or ())))


def _list_columns(columns: Sequence[str]) -> str:
    """List the first columns only: an object with records as its values has one key for each."""
    more = len(columns) - MOST_COLUMNS
    names = ", ".join(columns[:MOST_COLUMNS]) or "none"
    return f"columns found: {names}" + (f" and {more:,} more" if more > 0 else "")


def split_conversation(value: Any, column: str) -> tuple[dict[str, str], RowProblems]:
    """Split a column's list of `{"role", "content"}` turns into instruction, input and output.

    The last assistant turn is the answer, and the last user turn before it is the instruction. All
    other turns before the answer become the input, in order, with one paragraph for each turn:

        System: You are a careful tutor.

        User: What is 2 + 2?

        Assistant: 4

    Turns after the answer are left out.

    Returns:
        The three texts and no faults, or no texts and the faults as (field, reason).
    """
    if not isinstance(value, list):
        return {}, [(column, f"must be a list of turns, not {type_name(value)}")]
    roles = [message.get("role") if isinstance(message, dict) else None for message in value]
    has_answer = "assistant" in roles
    messages = value[: len(roles) - roles[::-1].index("assistant")] if has_answer else value
    problems = _message_problems(messages, column)
    if problems or not has_answer:
        return {}, problems or [(column, "no assistant turn: add the answer")]
    *before, answer = messages
    question = next((message for message in reversed(before) if message["role"] == "user"), None)
    rest = (message for message in before if message is not question)
    instruction = question["content"] if question else ""
    input = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in rest)
    return {"instruction": instruction, "input": input, "output": answer["content"]}, []


def _message_problems(messages: Sequence[Any], column: str) -> RowProblems:
    problems: RowProblems = []
    for at, message in enumerate(messages):
        place = f"{column}[{at}]"
        if not isinstance(message, dict):
            problems.append((place, f"must be an object, not {type_name(message)}"))
            continue
        for key in ("role", "content"):
            problem = _text_problem(message, key)
            if problem := problem or (None if message[key].strip() else "empty"):
                problems.append((f"{place}.{key}", problem))
    return problems
