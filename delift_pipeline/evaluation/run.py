"""Measure a model on the held-out set."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.evaluation.generate import Answer, greedy_answers
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, summarise
from delift_pipeline.evaluation.text_metrics import embedding_similarity, exact_match, rouge
from delift_pipeline.progress import Progress, SilentProgress
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import (
    Example,
    answer_losses,
    collate,
    encode_examples,
    target_cuts,
)

NEW_TOKENS_MARGIN = 8
"""How far past the longest reference an answer may run before it counts as unfinished."""


def evaluate(
    model_options: ModelOptions,
    adapter: Path | None,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """Load a model, with an adapter or as a whole trained folder, and measure it.

    Args:
        model_options: The base model.
        adapter: A PEFT folder for it, a folder with a whole trained model, or None for the base.
        heldout: Held-out records, in `RECORD_SCHEMA`.
        options: What to measure.
        progress: Where progress is shown.

    Raises:
        Refused: there is no held-out record, or `adapter` holds no model.
        DeliftError: no held-out record can be measured.
    """
    _refuse_empty(heldout)
    return evaluate_loaded(load_trained(model_options, adapter), heldout, options, progress)


def load_trained(model_options: ModelOptions, adapter: Path | None) -> LoadedModel:
    """The base model, the base model under a PEFT adapter, or a whole trained model.

    A QLoRA adapter is put on the base in the asked dtype, without quantisation.

    Raises:
        Refused: `adapter` is neither a PEFT nor a model folder.
    """
    if adapter is None:
        return load_model(model_options)
    if (adapter / "adapter_config.json").is_file():
        from peft import PeftModel

        loaded = load_model(model_options)
        model: Any = PeftModel.from_pretrained(loaded.model, str(adapter), is_trainable=False)
        return replace(loaded, model=model.eval())
    if (adapter / "config.json").is_file():
        trained = {"model": str(adapter), "revision": None}
        return load_model(model_options.model_copy(update=trained))
    raise Refused(Fault(f"{adapter.name} holds neither an adapter nor a model", field="adapter"))


def evaluate_loaded(
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
    started, progress = time.monotonic(), progress or SilentProgress()
    asked = heldout.head(options.limit) if options.limit else heldout
    examples, encoded = encode_examples(loaded.encoder, asked)
    if not examples:
        why = next(iter(encoded.unscorable.values()), "none given")
        raise DeliftError(f"no held-out record can be measured (the first: {why})")
    longest = _max_new_tokens(loaded, examples, options)
    losses = _losses(loaded, examples, options, progress)
    answers = _answers(loaded, examples, options, longest, progress)
    samples = _samples(loaded, asked, examples, losses, answers, options)
    counts = {
        "heldout": heldout.height,
        "records": len(examples),
        "unscorable": len(encoded.unscorable),
        "past_limit": heldout.height - asked.height,
        "unfinished": sum(not answer.finished for answer in answers),
    }
    details = {
        "max_new_tokens": longest if options.generates else None,
        "cuts": target_cuts(encoded),
        "unscorable": dict(encoded.unscorable),
    }
    return Evaluation(summarise(samples), samples, counts, details, time.monotonic() - started)


@torch.inference_mode()
def mean_answer_losses(
    model: torch.nn.Module, examples: Sequence[Example], batch_size: int, progress: Progress
) -> list[float]:
    """Mean negative log-probability of each example's answer tokens, nats, in order."""
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    means = np.empty(len(examples))
    with progress.track("answer loss", len(examples), "records") as meter:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([examples[i] for i in chosen]).to(device)
            losses = answer_losses(model, batch).double()
            sums = torch.zeros(len(chosen), dtype=torch.float64, device=device)
            sums.index_add_(0, batch.rows, losses)
            lengths = np.array([len(examples[i].answer) for i in chosen])
            means[chosen] = sums.cpu().numpy() / lengths
            meter.advance(len(chosen))
    return means.tolist()


def _losses(
    loaded: LoadedModel, examples: Sequence[Example], options: EvaluationOptions, progress: Progress
) -> list[float]:
    if "answer_loss" not in options.metrics:
        return []
    losses = mean_answer_losses(loaded.model, examples, options.batch_size, progress)
    for example, loss in zip(examples, losses, strict=True):
        if loss - loss != 0:
            raise DeliftError(
                f"the answer loss of held-out record {example.record_id} is {loss}: the model's "
                "weights are damaged, or its dtype is too short for them"
            )
    return losses


def _max_new_tokens(
    loaded: LoadedModel, examples: Sequence[Example], options: EvaluationOptions
) -> int:
    """One length for all records, so that no record's answer depends on its batch."""
    reference = max(len(example.answer) for example in examples) + NEW_TOKENS_MARGIN
    wanted = options.max_new_tokens or min(reference, options.max_new_tokens_cap)
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions is None:
        return wanted
    return max(1, min(wanted, positions - max(len(example.prompt) for example in examples)))


def _answers(
    loaded: LoadedModel,
    examples: Sequence[Example],
    options: EvaluationOptions,
    longest: int,
    progress: Progress,
) -> list[Answer]:
    if not options.generates:
        return []
    prompts = [example.prompt for example in examples]
    stops = [loaded.encoder.eos]
    return greedy_answers(loaded.model, prompts, stops, longest, options.batch_size, progress)


def _samples(
    loaded: LoadedModel,
    heldout: pl.DataFrame,
    examples: Sequence[Example],
    losses: Sequence[float],
    answers: Sequence[Answer],
    options: EvaluationOptions,
) -> pl.DataFrame:
    """One row a measured record, everything joined by `record_id`."""
    rows = pl.DataFrame({"record_id": [e.record_id for e in examples]})
    texts = heldout.select("record_id", "instruction", "input", reference="output")
    rows = rows.join(texts, on="record_id", how="left", maintain_order="left")
    columns: dict[str, Any] = {"answer_loss": list(losses)} if losses else {}
    if answers:
        decoded = [_text(loaded.tokenizer, answer.tokens) for answer in answers]
        columns["generated"] = decoded
        columns |= _text_metrics(decoded, rows["reference"].to_list(), options)
    kept = {n: v for n, v in columns.items() if n not in METRICS or n in options.metrics}
    missing = [n for n in SAMPLE_SCHEMA if n not in kept and n not in rows.columns]
    rows = rows.with_columns(*(pl.Series(name, values) for name, values in kept.items()))
    rows = rows.with_columns(*(pl.lit(None).alias(name) for name in missing))
    return rows.select(SAMPLE_SCHEMA.names()).cast(dict(SAMPLE_SCHEMA))  # pyright: ignore[reportArgumentType]


def _text_metrics(
    generated: Sequence[str], references: Sequence[str], options: EvaluationOptions
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {
        "exact_match": [exact_match(g, r) for g, r in zip(generated, references, strict=True)]
    }
    if {"rouge1", "rougeL"} & set(options.metrics):
        found |= rouge(generated, references)
    if "embedding_similarity" in options.metrics:
        found["embedding_similarity"] = embedding_similarity(
            generated, references, options.embedder
        )
    return found


def _text(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).strip()


def _refuse_empty(heldout: pl.DataFrame) -> None:
    if not heldout.height:
        raise Refused(Fault("the held-out set is empty", field="heldout"))
