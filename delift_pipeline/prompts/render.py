"""Look inside: the exact text and token ids of a target after its demonstrations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.prompts.encode import Encoder, Example, Unscorable
from delift_pipeline.prompts.wording import Piece, write


@dataclass(frozen=True)
class Rendered:
    """What is scored.

    Attributes:
        text: The text, special tokens by their names, without what was cut.
        token_ids: The ids the model reads.
        answer_positions: Indices in `token_ids` of the scored tokens, end-of-text included.
    """

    text: str
    token_ids: list[int]
    answer_positions: list[int]


def render(
    encoder: Encoder, target: Mapping[str, Any], *demonstrations: Mapping[str, Any]
) -> Rendered:
    """Write out a target and what is shown before it exactly as it is scored.

    Args:
        encoder: The model's encoder.
        target: A record (instruction, input, output).
        demonstrations: The records shown before it, in order; none for the baseline.

    Raises:
        Refused: one of them cannot be scored, or together they do not fit the window.
    """
    asked = _example(encoder, target, "target")
    before = _before(encoder, demonstrations)
    prompt = [*before.token_ids, *asked.prompt.ids.tolist()]
    answer = [*asked.answer.ids.tolist(), encoder.eos]
    eos = encoder.tokenizer.decode([encoder.eos])
    text = f"{before.text}{asked.prompt.shown}{asked.answer.shown}{eos}"
    ids = [*prompt, *answer]
    if len(ids) > encoder.window:
        reason = f"{len(demonstrations)} demonstrations and the target take {len(ids):,} tokens"
        why = f"{reason}, more than the window of {encoder.window:,}; show fewer"
        raise Refused(Fault(why, field="demonstration"))
    return Rendered(text, ids, list(range(len(prompt), len(ids))))


def _before(encoder: Encoder, records: Sequence[Mapping[str, Any]]) -> Rendered:
    wording = encoder.wording
    if not records:
        return Rendered(_text(wording.head), list(encoder.head), [])
    end = str(encoder.tokenizer.decode([encoder.eos]))
    close = _text(wording.close) + (end if encoder.template.demonstration.end_of_text else "")
    text, ids = _text(wording.start), list(encoder.start)
    for record in records:
        shown = _example(encoder, record, "demonstration")
        text += f"{shown.shown_prompt.shown}{shown.shown_answer.shown}{close}"
        ids += [*shown.shown_prompt.ids.tolist(), *shown.shown_answer.ids.tolist(), *encoder.close]
    return Rendered(text, ids, [])


def _text(parts: Piece) -> str:
    return write([parts], {}).text


def _example(encoder: Encoder, record: Mapping[str, Any], role: str) -> Example:
    example = encoder.examples([record])[0]
    if isinstance(example, Unscorable):
        raise Refused(Fault(f"this record cannot be scored: {example}", field=role))
    return example
