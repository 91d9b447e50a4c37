"""Look inside: the exact text and token ids of one pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.prompts.encode import Encoder, Example, Unscorable


@dataclass(frozen=True)
class Rendered:
    """What is scored for one pair.

    Attributes:
        text: The text, special tokens by their names, without what was cut.
        token_ids: The ids the model reads.
        answer_positions: Indices in `token_ids` of the scored tokens, end-of-text included.
    """

    text: str
    token_ids: list[int]
    answer_positions: list[int]


def render(
    encoder: Encoder, target: Mapping[str, Any], demonstration: Mapping[str, Any] | None = None
) -> Rendered:
    """Write out one pair exactly as it is scored.

    Args:
        encoder: The model's encoder.
        target: A record (instruction, input, output).
        demonstration: The record shown before it, or None for the baseline.

    Raises:
        Refused: one of the two cannot be scored; the reason is given.
    """
    asked = _example(encoder, target, "target")
    before_text, before = _before(encoder, demonstration)
    ids = [*before, *asked.prompt.ids.tolist()]
    answer = [*asked.answer.ids.tolist(), encoder.eos]
    eos = encoder.tokenizer.decode([encoder.eos])
    text = f"{before_text}{asked.prompt.shown}{asked.answer.shown}{eos}"
    return Rendered(text, [*ids, *answer], list(range(len(ids), len(ids) + len(answer))))


def _before(encoder: Encoder, record: Mapping[str, Any] | None) -> tuple[str, list[int]]:
    template = encoder.template
    bos = str(encoder.tokenizer.decode(encoder.bos)) if encoder.bos else ""
    if record is None:
        return bos + template.alone, encoder.head
    shown = _example(encoder, record, "demonstration")
    end = encoder.tokenizer.decode([encoder.eos]) if template.demonstration.end_of_text else ""
    text = f"{shown.shown_prompt.shown}{shown.shown_answer.shown}{template.demonstration.close}"
    ids = [*shown.shown_prompt.ids.tolist(), *shown.shown_answer.ids.tolist(), *encoder.close]
    return f"{bos}{template.lead}{text}{end}", [*encoder.start, *ids]


def _example(encoder: Encoder, record: Mapping[str, Any], role: str) -> Example:
    example = encoder.examples([record])[0]
    if isinstance(example, Unscorable):
        raise Refused(Fault(f"this record cannot be scored: {example}", field=role))
    return example
