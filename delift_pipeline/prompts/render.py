"""Look inside: the exact text and token ids of a target after its demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delift_pipeline.core.errors import Refused
from delift_pipeline.prompts.encode import Encoder, Example, Unscorable
from delift_pipeline.prompts.template import Piece, write


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
    """Write out a target and what is shown before it, in order, exactly as it is scored.

    Records hold instruction, input and output; without demonstrations it is the baseline.

    Raises:
        Refused: one of them cannot be scored, or together they do not fit the window.
    """
    asked = _example(encoder, target, "target")
    eos = str(encoder.tokenizer.decode([encoder.eos]))
    wording = encoder.wording
    begin = (wording.start, encoder.start) if demonstrations else (wording.head, encoder.head)
    text, ids = _text(begin[0]), list(begin[1])
    close = _text(wording.close) + (eos if encoder.template.demonstration.end_of_text else "")
    for record in demonstrations:
        one = _example(encoder, record, "demonstration")
        text += f"{one.shown_prompt.shown}{one.shown_answer.shown}{close}"
        ids += [*one.shown_prompt.ids.tolist(), *one.shown_answer.ids.tolist(), *encoder.close]
    text += f"{asked.prompt.shown}{asked.answer.shown}{eos}"
    ids += asked.prompt.ids.tolist()
    answer = len(ids)
    ids += [*asked.answer.ids.tolist(), encoder.eos]
    if len(ids) > encoder.window:
        raise Refused(
            f"{len(demonstrations)} demonstrations and the target take {len(ids):,} tokens, more "
            f"than the window of {encoder.window:,}; show fewer",
            field="demonstration",
        )
    return Rendered(text, ids, list(range(answer, len(ids))))


def _text(parts: Piece) -> str:
    return write([parts], {}).text


def _example(encoder: Encoder, record: Mapping[str, Any], role: str) -> Example:
    example = encoder.examples([record])[0]
    if isinstance(example, Unscorable):
        raise Refused(f"this record cannot be scored: {example}", field=role)
    return example
