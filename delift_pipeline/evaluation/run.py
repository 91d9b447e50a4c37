"""Measure a model on the held-out set: as it is, or with chosen records as demonstrations.

Demonstrations say what a subset is worth without training. As in the paper, the k chosen records
nearest to a question stand before it, the nearest first.
"""

import math
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.evaluation.engines import (
    PAPER_NEW_TOKENS,
    EvaluationEngine,
    evaluation_engine,
    load_for_evaluation,
)
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, summarise
from delift_pipeline.evaluation.text_metrics import ROUGES, embedding_similarity, rouge
from delift_pipeline.prompts.encode import EncodedRecords, Encoder
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.neighbours import COSINE_DECIMALS, embed, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import Example, encode_examples, target_cuts

NEW_TOKENS_MARGIN = 8
"""How far past the longest reference an answer may run before it counts as unfinished."""
OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s", re.MULTILINE)


def evaluate(
    model_options: ModelOptions,
    adapter: Path | None,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Load a model, with an adapter or as a whole trained folder, and measure it.

    `adapter` is a PEFT folder for the base model, a folder with a whole trained model, or None.

    Raises:
        Refused: there is no held-out record, or `adapter` holds no model.
        DeliftError: no held-out record can be measured.
    """
    _refuse_empty(heldout)
    loaded = load_for_evaluation(model_options, adapter, options)
    return evaluate_model(loaded, heldout, options, progress)


def evaluate_model(
    loaded: LoadedModel,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model that is loaded already.

    Raises:
        Refused: there is no held-out record.
        DeliftError: no held-out record can be measured.
    """
    _refuse_empty(heldout)
    examples, encoded = encode_examples(loaded.encoder, heldout[: options.limit])
    details = {"cuts": target_cuts(encoded), "unscorable": dict(encoded.unscorable)}
    return measure_examples(loaded, heldout, examples, details, options, progress)


def _refuse_empty(heldout: pl.DataFrame) -> None:
    if not heldout.height:
        raise Refused("the held-out set is empty", field="heldout")


def new_tokens(options: EvaluationOptions, longest_answer: int) -> int:
    """How long a generated answer may get, in tokens, where the window allows it.

    `longest_answer` counts the longest reference's tokens, its end-of-text token included.
    """
    if options.max_new_tokens:
        return options.max_new_tokens
    if options.generation == "paper":
        return PAPER_NEW_TOKENS
    return min(longest_answer + NEW_TOKENS_MARGIN, options.max_new_tokens_cap)


def measure_examples(
    loaded: LoadedModel,
    heldout: pl.DataFrame,
    examples: Sequence[Example],
    details: dict[str, Any],
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Every asked metric of the encoded held-out records.

    `heldout` holds the records that are not measured too; `details` says what encoding left out
    (`unscorable`: record_id -> why) and cut (`cuts`). A prompt may begin with demonstrations.

    Raises:
        DeliftError: no held-out record can be measured.
    """
    if not examples:
        why = next(iter(details["unscorable"].values()), "none given")
        raise DeliftError(f"no held-out record can be measured (the first: {why})")
    started, progress = time.monotonic(), progress or SilentProgress()
    requested = heldout[: options.limit]
    ids = pl.DataFrame({"record_id": [example.record_id for example in examples]})
    records = ids.join(requested, on="record_id", how="left", maintain_order="left")
    # One length for all records, so no record's answer depends on its batch.
    longest = new_tokens(options, max(len(example.answer) for example in examples))
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is not None:
        left = positions - max(len(example.prompt) for example in examples)
        longest = max(1, min(longest, left))
    room = max(len(e.prompt) + max(len(e.answer), longest) for e in examples)
    columns: dict[str, Sequence[Any]] = {}
    unfinished = 0
    with evaluation_engine(loaded, options, room) as engine:
        if "answer_loss" in options.metrics:
            columns["answer_loss"] = _losses(engine, examples, progress)
        if options.generates:
            prompts = [example.prompt for example in examples]
            tokenizer: Any = loaded.tokenizer
            decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
            answers = engine.answers(prompts, [loaded.encoder.eos], longest, progress)
            unfinished = sum(not answer.finished for answer in answers)
            columns["generated"] = [
                decode(answer.tokens, skip_special_tokens=True).strip() for answer in answers
            ]
        if "choice_accuracy" in options.metrics:
            columns["choice_accuracy"] = choice_accuracy(engine, loaded.encoder, records, progress)
    if options.generates:
        # The embedder computes beside the model; vLLM's weights are not ours.
        device = "cpu" if loaded.device.type == "meta" else str(loaded.device)
        references = records["output"].to_list()
        columns |= _text_metrics(columns["generated"], references, options, device)
    rows = records.select("record_id", "instruction", "input", reference="output")
    rows = rows.with_columns(
        pl.Series(name, columns.get(name, [None] * rows.height), kind, strict=False)
        for name, kind in SAMPLE_SCHEMA.items()
        if name not in rows.columns
    )
    samples = rows.select(SAMPLE_SCHEMA.names())
    counts = {
        "heldout": heldout.height,
        "records": len(examples),
        "unscorable": len(details["unscorable"]),
        "past_limit": heldout.height - requested.height,
        "unfinished": unfinished,
    }
    new = longest if options.generates else None
    details = {"engine": engine.name, "max_new_tokens": new, **details}
    return Evaluation(summarise(samples), samples, counts, details, time.monotonic() - started)


def _losses(
    engine: EvaluationEngine, examples: Sequence[Example], progress: Progress
) -> list[float]:
    losses = [float(tokens.mean()) for tokens in engine.losses(examples, progress)]
    for example, loss in zip(examples, losses, strict=True):
        if not math.isfinite(loss):
            raise DeliftError(
                f"the answer loss of held-out record {example.record_id} is {loss}: the model's "
                "weights are damaged, or its dtype is too short for them"
            )
    return losses


def _text_metrics(
    generated: Sequence[str], references: Sequence[str], options: EvaluationOptions, device: str
) -> dict[str, Sequence[Any]]:
    """The columns of the asked metrics that compare texts."""
    columns: dict[str, Sequence[Any]] = {
        name: list(map(compare, generated, references))
        for name in options.metrics
        if (compare := METRICS[name].compare)
    }
    if rouges := [name for name in ROUGES if name in options.metrics]:
        columns |= rouge(generated, references, rouges)
    if "embedding_similarity" in options.metrics:
        columns["embedding_similarity"] = embedding_similarity(
            generated, references, options.embedder, device
        )
    return columns


def listed_options(prompt: str) -> list[str]:
    """The letters of the options a prompt lists, one at the start of a line each.

    Only a run A, B, C ... counts; empty where fewer than two are listed.
    """
    letters: list[str] = []
    for letter in OPTION.findall(prompt):
        if letter == chr(ord("A") + len(letters)):
            letters.append(letter)
    return letters if len(letters) > 1 else []


def choice_accuracy(
    engine: EvaluationEngine, encoder: Encoder, records: pl.DataFrame, progress: Progress
) -> list[float | None]:
    """Whether the right option's letter is the most likely of all that the prompt lists.

    An option's score is the summed log-probability of its letter's tokens after the prompt, the
    end-of-text token left out; the first of equal ones counts as chosen.

    `records` are scorable ones (`RECORD_SCHEMA`) whose output is the right letter.

    Returns:
        1.0, 0.0, or None where the prompt lists no options or the output is none of them.
    """
    right = [output.strip() for output in records["output"]]
    prompts = records.select(pl.concat_str("instruction", "input", separator="\n")).to_series()
    option_letters = [
        letters if answer in (letters := listed_options(prompt)) else []
        for prompt, answer in zip(prompts, right, strict=True)
    ]
    options = [(i, letter) for i, letters in enumerate(option_letters) for letter in letters]
    if not options:
        return [None] * records.height
    questions = records[[i for i, _ in options]].with_columns(
        record_id=pl.Series([f"{i}-{letter}" for i, letter in options]),
        output=pl.Series([letter for _, letter in options]),
    )
    examples, _ = encode_examples(encoder, questions)
    losses = engine.losses(examples, progress, "multiple choice")
    # A letter takes no more room than the answer, so a record that fits fits with any letter.
    scores = {
        example.record_id: -float(tokens[:-1].sum())
        for example, tokens in zip(examples, losses, strict=True)
    }

    def right_is_best(i: int) -> float:
        best = max(option_letters[i], key=lambda letter: scores[f"{i}-{letter}"])
        return float(best == right[i])

    return [right_is_best(i) if option_letters[i] else None for i in range(records.height)]


def nearest_records(
    chosen: pl.DataFrame, heldout: pl.DataFrame, k: int, embedder: str
) -> dict[str, list[str]]:
    """The k chosen records whose prompts are most like each held-out record's prompt.

    Cosines are rounded to six decimals; among equal ones the smaller record_id is nearer.

    Returns the ids of k chosen records (at least 1) by held-out record_id, the nearest first.

    Raises:
        Refused: the embedder cannot be loaded.
    """
    subset = chosen.sort("record_id")
    rows = embed([*prompt_texts(subset), *prompt_texts(heldout)], embedder)
    cosines = rows[subset.height :] @ rows[: subset.height].T
    dense = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
    order = np.argsort(-np.round(dense, COSINE_DECIMALS), axis=1, kind="stable")[:, :k]
    ids = subset["record_id"].to_list()
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
    requested = heldout[: options.limit]
    near = nearest_records(chosen, requested, options.in_context, embedder or options.embedder)
    encoded = loaded.encoder.encode(pl.concat([requested.select(chosen.columns), chosen]))
    questions = [record for record in requested["record_id"] if record in encoded.rows]
    answer_lengths = [int(encoded.answer_lengths[encoded.rows[record]]) for record in questions]
    reserved = new_tokens(options, max(answer_lengths, default=0)) if options.generates else 0
    examples, demonstrations = [], []
    for record in questions:
        row = encoded.rows[record]
        places = _rows_that_fit(encoded, row, near[record], loaded.encoder.window, reserved)
        prompt = np.concatenate([encoded.prefix(*places), encoded.prompt(row)])
        examples.append(Example(record, prompt, encoded.answer(row)))
        demonstrations.append(len(places))
    mean = sum(demonstrations) / max(1, len(demonstrations))
    details = {
        "cuts": target_cuts(encoded),
        "unscorable": {id_: why for id_, why in encoded.unscorable.items() if id_ in near},
        "demonstrations": {"asked": options.in_context, "shown_mean": mean},
    }
    return measure_examples(loaded, heldout, examples, details, options, progress)


def _rows_that_fit(
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
