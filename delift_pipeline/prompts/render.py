"""Show the exact text and token ids of a target after its demonstrations, for inspection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delift_pipeline.core.errors import InputError
from delift_pipeline.prompts.encode import Encoder, Example, Unscorable
from delift_pipeline.prompts.template import Piece, write


@dataclass(frozen=True)
class RenderedPrompt:
    """The text of one pair as the model reads it.

    Attributes:
        text: The text without what was cut; special tokens are written by their names.
        token_ids: The ids that the model reads.
        answer_positions: The indices in `token_ids` of the scored tokens, with end-of-text.
    """

    text: str
    token_ids: list[int]
    answer_positions: list[int]


def render(
    encoder: Encoder, target: Mapping[str, Any], *demonstrations: Mapping[str, Any]
) -> RenderedPrompt:
    """Render a target after its demonstrations, in order, exactly as it is scored.

    Each record needs `instruction`, `input` and `output`. Without demonstrations the result is the
    prompt of the baseline log-probability.

    Raises:
        InputError: One of the records cannot be scored, or together they do not fit the window.
    """
    scored = _encode_example(encoder, target, "target")
    eos = str(encoder.tokenizer.decode([encoder.eos]))
    wording = encoder.wording
    if demonstrations:
        text, ids = _write_piece(wording.start), list(encoder.start)
    else:
        text, ids = _write_piece(wording.head), list(encoder.head)
    close = _write_piece(wording.close)
    close += eos if encoder.template.demonstration.end_of_text else ""
    for record in demonstrations:
        example = _encode_example(encoder, record, "demonstration")
        for segment in (example.demonstration_prompt, example.demonstration_answer):
            text += segment.text_after_cuts
            ids += segment.ids.tolist()
        text += close
        ids += encoder.close
    text += f"{scored.prompt.text_after_cuts}{scored.answer.text_after_cuts}{eos}"
    ids += scored.prompt.ids.tolist()
    answer_start = len(ids)
    ids += [*scored.answer.ids.tolist(), encoder.eos]
    if len(ids) > encoder.window:
        raise InputError(
            f"{len(demonstrations)} demonstrations and the target take {len(ids):,} tokens, more "
            f"than the window of {encoder.window:,}. Use fewer demonstrations.",
            field="demonstration",
        )
    return RenderedPrompt(text, ids, list(range(answer_start, len(ids))))


def _write_piece(parts: Piece) -> str:
    return write([parts], {}).text


def _encode_example(encoder: Encoder, record: Mapping[str, Any], role: str) -> Example:
    example = encoder.examples([record])[0]
    if isinstance(example, Unscorable):
        raise InputError(f"this record cannot be scored: {example}", field=role)
    return example
