"""Measure a model on the held-out set, with or without chosen records as demonstrations.

Demonstrations show what a subset is worth without training. As in the paper, the k chosen records
nearest to a question come before it, the nearest first.
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

from delift_pipeline.core.errors import DeliftError, InputError
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
"""How many tokens an answer may be longer than the longest reference."""
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
        InputError: the held-out set is empty, or `adapter` has neither an adapter nor a model.
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
    """Measure a loaded model.

    Raises:
        InputError: the held-out set is empty.
        DeliftError: no held-out record can be measured.
    """
    _refuse_empty(heldout)
    examples, encoded = encode_examples(loaded.encoder, heldout[: options.limit])
    details = {"cuts": target_cuts(encoded), "unscorable": dict(encoded.unscorable)}
    return measure_examples(loaded, heldout, examples, details, options, progress)


def _refuse_empty(heldout: pl.DataFrame) -> None:
    if not heldout.height:
        reason = "the held-out set is empty. Ingest a version with held-out records"
        raise InputError(reason, field="heldout")


def new_tokens(options: EvaluationOptions, longest_answer: int) -> int:
    """Return the longest length of a generated answer in tokens, if the window is large enough.

    `longest_answer` is the length of the longest reference with its end-of-text token.
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
    """Measure the encoded held-out records in every requested metric.

    `heldout` also has the records that are not measured. `details` says which records cannot be
    scored (`unscorable`: record_id -> reason) and how many texts were cut (`cuts`). A prompt may
    begin with demonstrations.

    Raises:
        DeliftError: no held-out record can be measured.
    """
    if not examples:
        why = next(iter(details["unscorable"].values()), "none given")
        raise DeliftError(
            f"no held-out record can be measured (the first: {why}). Widen the window"
        )
    started, progress = time.monotonic(), progress or SilentProgress()
    requested = heldout[: options.limit]
    ids = pl.DataFrame({"record_id": [example.record_id for example in examples]})
    records = ids.join(requested, on="record_id", how="left", maintain_order="left")
    # All records share one length limit, so no answer depends on its batch.
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
        # The embedder runs on the model's device; with vLLM that device is not ours to use.
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
                f"the answer loss of held-out record {example.record_id} is {loss}. The model's "
                "weights are damaged or overflow its dtype. Train again, or use dtype float32"
            )
    return losses


def _text_metrics(
    generated: Sequence[str], references: Sequence[str], options: EvaluationOptions, device: str
) -> dict[str, Sequence[Any]]:
    """Return the columns of the requested metrics that compare texts."""
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
    """Return the letters of the options that a prompt lists, each at the start of a line.

    Only letters in the order A, B, C ... count. The list is empty for fewer than two options.
    """
    letters: list[str] = []
    for letter in OPTION.findall(prompt):
        if letter == chr(ord("A") + len(letters)):
            letters.append(letter)
    return letters if len(letters) > 1 else []


def choice_accuracy(
    engine: EvaluationEngine, encoder: Encoder, records: pl.DataFrame, progress: Progress
) -> list[float | None]:
    """Return for each record whether the right option's letter is the most likely one.

    An option's score is the sum of the log-probabilities of its letter's tokens after the prompt,
    without the end-of-text token. Of options with equal scores the first counts as chosen.

    `records` are scorable (`RECORD_SCHEMA`), and the output of each is the right letter.

    Returns:
        1.0, 0.0, or None if the prompt lists no options or the output is not one of them.
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
    # A letter is not longer than the answer, so a record that fits the window fits with any letter.
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
    """Return the k chosen records whose prompts are most similar to each held-out record's prompt.

    Cosines are rounded to six decimals. Of equal ones the smaller record_id counts as nearer.

    The result maps each held-out record_id to k ids (at least 1), the nearest first.

    Raises:
        InputError: the embedder cannot be loaded.
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
    """Measure a model that reads the nearest chosen records before each question.

    Of the `options.in_context` nearest records, as many are used as fit the window together with
    the question, its answer and the longest generated answer. `details` has their mean number.

    `embedder` decides which records are nearest; by default it is the one of the metrics.

    Raises:
        InputError: `in_context` is 0, there is no chosen or held-out record, or a held-out record
            is also a chosen one.
        DeliftError: no held-out record can be measured.
    """
    if not options.in_context:
        raise InputError("in_context is 0. Ask for at least one demonstration", field="in_context")
    for name, frame in (("subset", chosen), ("held-out set", heldout)):
        if frame.is_empty():
            raise InputError(f"the {name} is empty", field="in_context")
    if both := set(chosen["record_id"]) & set(heldout["record_id"]):
        reason = f"{len(both)} held-out records are in the subset too, for example {min(both)}. A "
        reason += "question must not be shown its own answer. Remove them from one of both"
        raise InputError(reason, field="in_context")
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
    """Return the rows of the nearest records that fit before a question, nearest first.

    At least `reserved` tokens after the prompt are left for the generated answer.
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
