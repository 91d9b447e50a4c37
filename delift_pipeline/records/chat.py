"""A conversation as one prompt and one answer.

The last assistant turn is the answer and the last user turn before it the instruction. Whatever
else stands before the answer becomes the input, in order, one paragraph a turn:

    System: You are a careful tutor.

    User: What is 2 + 2?

    Assistant: 4

Turns after the answer are not part of the record.
"""

from typing import Any

from delift_pipeline.records.formats import type_name

Problems = list[tuple[str, str]]


def conversation(value: Any, column: str) -> tuple[dict[str, str], Problems]:
    """Split a list of `{"role", "content"}` turns into instruction, input and output.

    Args:
        value: The turns as the file holds them.
        column: The column's name, for the faults.

    Returns:
        The three texts, or nothing and the faults as (field, reason).
    """
    if not isinstance(value, list):
        return {}, [(column, f"must be a list of turns, not {type_name(value)}")]
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in value]
    if "assistant" not in roles:
        return {}, _shape_problems(value, column) or [(column, "no assistant turn")]
    last = len(roles) - 1 - roles[::-1].index("assistant")
    turns = value[: last + 1]
    problems = _shape_problems(turns, column)
    return ({}, problems) if problems else (_split(turns), [])


def _shape_problems(turns: list[Any], column: str) -> Problems:
    problems: Problems = []
    for at, turn in enumerate(turns):
        place = f"{column}[{at}]"
        if not isinstance(turn, dict):
            problems.append((place, f"must be an object, not {type_name(turn)}"))
            continue
        for key in ("role", "content"):
            if key not in turn:
                problems.append((f"{place}.{key}", "missing"))
            elif not isinstance(turn[key], str):
                reason = f"must be text, not {type_name(turn[key])}"
                problems.append((f"{place}.{key}", reason))
            elif not turn[key].strip():
                problems.append((f"{place}.{key}", "empty"))
    return problems


def _split(turns: list[dict[str, str]]) -> dict[str, str]:
    *before, answer = turns
    users = [at for at, turn in enumerate(before) if turn["role"] == "user"]
    asked = users[-1] if users else None
    rest = [turn for at, turn in enumerate(before) if at != asked]
    return {
        "instruction": "" if asked is None else before[asked]["content"],
        "input": "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in rest),
        "output": answer["content"],
    }
