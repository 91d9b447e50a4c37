"""The base model with chosen records as demonstrations: what a subset is worth without training.

As in the paper, the k chosen records nearest to a question stand before it, the nearest first.
"""

import numpy as np
import polars as pl

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.result import Evaluation
from delift_pipeline.evaluation.run import measured, new_tokens
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.neighbours import COSINE_DECIMALS, embed, prompt_texts
from delift_pipeline.training.batches import Example, target_cuts


def nearest_chosen(
    chosen: pl.DataFrame, heldout: pl.DataFrame, k: int, embedder: str
) -> dict[str, list[str]]:
    """The k chosen records whose prompts are most like each held-out record's prompt.

    Cosines are rounded to six decimals; among equal ones the smaller record_id is nearer.

    Returns the ids of k chosen records (at least 1) by held-out record_id, the nearest first.

    Raises:
        Refused: the embedder cannot be loaded.
    """
    shown = chosen.sort("record_id")
    rows = embed([*prompt_texts(shown), *prompt_texts(heldout)], embedder)
    cosines = rows[shown.height :] @ rows[: shown.height].T
    dense = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
    order = np.argsort(-np.round(dense, COSINE_DECIMALS), axis=1, kind="stable")[:, :k]
    ids = shown["record_id"].to_list()
    return {
        record: [ids[place] for place in places]
        for record, places in zip(heldout["record_id"], order, strict=True)
    }


def evaluate_in_context(
    loaded: LoadedModel,
    chosen: pl.DataFrame,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    progress: Progress | None = None,
    embedder: str | None = None,
) -> Evaluation:
    """Measure a model that sees the nearest chosen records before each question.

    As many of the `options.in_context` nearest are shown, nearest first, as the window holds beside
    the question, its answer and the longest generated one; `details` says how many that were.

    Nearness is that of `embedder` [the one of the metrics].

    Raises:
        Refused: `in_context` is 0, there is no chosen or held-out record, or a held-out record is
            among the chosen ones.
        DeliftError: no held-out record can be measured.
    """
    if not options.in_context:
        raise Refused("needs at least one demonstration", field="in_context")
    for name, frame in (("subset", chosen), ("held-out set", heldout)):
        if frame.is_empty():
            raise Refused(f"the {name} is empty", field="in_context")
    if both := set(chosen["record_id"]) & set(heldout["record_id"]):
        reason = f"{len(both)} held-out records are in the subset, first {min(both)}: a question "
        raise Refused(f"{reason}must not be shown its own answer", field="in_context")
    asked = heldout[: options.limit]
    near = nearest_chosen(chosen, asked, options.in_context, embedder or options.embedder)
    encoded = loaded.encoder.encode(pl.concat([asked.select(chosen.columns), chosen]))
    questions = [record for record in asked["record_id"] if record in encoded.rows]
    answer_lengths = [int(encoded.answer_lengths[encoded.rows[record]]) for record in questions]
    reserved = new_tokens(options, max(answer_lengths, default=0)) if options.generates else 0
    examples, shown = [], []
    for record in questions:
        row = encoded.rows[record]
        places = _fitting(encoded, row, near[record], loaded.encoder.window, reserved)
        prompt = np.concatenate([encoded.prefix(*places), encoded.prompt(row)])
        examples.append(Example(record, prompt, encoded.answer(row)))
        shown.append(len(places))
    mean = sum(shown) / max(1, len(shown))
    details = {
        "cuts": target_cuts(encoded),
        "unscorable": {id_: why for id_, why in encoded.unscorable.items() if id_ in near},
        "demonstrations": {"asked": options.in_context, "shown_mean": mean},
    }
    return measured(loaded, heldout, examples, details, options, progress)


def _fitting(
    encoded: EncodedRecords, row: int, nearest: list[str], window: int, reserved: int
) -> list[int]:
    """Rows of the nearest records that fit before a question, nearest first.

    `reserved` tokens behind the prompt are kept free for what is generated.
    """
    behind = max(reserved, int(encoded.answer_lengths[row]))
    room = window - len(encoded.start) - int(encoded.prompt_lengths[row]) - behind
    places: list[int] = []
    for place in (encoded.rows[other] for other in nearest if other in encoded.rows):
        room -= len(encoded.demonstration(place))
        if room < 0:
            break
        places.append(place)
    return places
