"""Fine-tune a model on a subset: seeded, answer-only loss, safetensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.progress import Progress, SilentProgress
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.training.batches import encode_examples, target_cuts
from delift_pipeline.training.log import TrainingLog, weights_hash, write_training_log
from delift_pipeline.training.loop import Kept, OnStep, Run, parameter_counts
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.setup import prepare


def train(
    options: TrainingOptions,
    model_options: ModelOptions,
    records: pl.DataFrame,
    seed: int,
    out: Path,
    start: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    checkpoints: Path | None = None,
) -> TrainingLog:
    """Fine-tune on `records` and write the adapter, or the whole model, into `out`.

    The loss is the mean negative log-probability of the answer tokens of one step's records, the
    end-of-text token included, on the encoding that scoring uses. On a CPU the same arguments give
    the same bytes, in whatever order the records come.

    Args:
        options: How to train.
        model_options: The base model; it is loaded afresh.
        records: The subset, in `RECORD_SCHEMA`.
        seed: Decides initial adapter weights, batches and dropout.
        out: An existing folder, inside an atomic one where it matters.
        start: An adapter's (or full model's) folder to go on from.
        progress: Where progress is shown.
        on_step: Called after each step.
        checkpoints: Folder for the state kept every `options.checkpoint_every` steps; a state of
            this very run found there is gone on from.

    Raises:
        Refused: no record can be trained on, or method, start and installed packages disagree.
        DeliftError: the loss is not finite, or memory ran out.
    """
    _refuse_empty(records, {})
    with _seeded(seed):
        trainable = prepare(options, model_options, start)
        examples, encoded = encode_examples(trainable.encoder, records.sort("record_id"))
        _refuse_empty(pl.DataFrame(encoded.ids), encoded.unscorable)
        # Names the run, so that a checkpoint of another is not gone on from.
        ids = [example.record_id for example in examples]
        before = None if start is None else weights_hash(start)
        key = digest_json([options.request, seed, trainable.fingerprint, ids, before])
        kept = Kept(checkpoints, key, options.checkpoint_every)
        run = Run(options, seed, trainable, examples, kept)
        run.go(progress or SilentProgress(), on_step)
    trainable.save(out)
    log = TrainingLog(
        method=options.method,
        epochs=options.presentations(len(examples)) / len(examples),
        records_used=len(examples),
        records_left_out=dict(encoded.unscorable),
        cuts=target_cuts(encoded),
        seed=seed,
        started_from=None if start is None else start.name,
        **run.account(),
    )
    write_training_log(out, log)
    return log


def untrained(
    options: TrainingOptions, model_options: ModelOptions, seed: int, out: Path
) -> TrainingLog:
    """Write an adapter that changes nothing, or for full fine-tuning the model itself.

    A fresh adapter's second matrix is zero, so that every output is bit for bit the base model's.

    Args:
        options: The method and the adapter's shape; nothing is trained.
        model_options: The base model.
        seed: Decides the first matrix, which has no effect.
        out: An existing folder.
    """
    with _seeded(seed):
        trainable = prepare(options, model_options, None)
    trainable.save(out)
    trained, parameters = parameter_counts(trainable.model)
    log = TrainingLog(
        method=options.method,
        losses=[],
        learning_rates=[],
        steps=0,
        epochs=0,
        seconds=0,
        tokens=0,
        answer_tokens=0,
        trainable_parameters=trained,
        parameters=parameters,
        records_used=0,
        seed=seed,
    )
    write_training_log(out, log)
    return log


def _refuse_empty(records: pl.DataFrame, left_out: Mapping[str, str]) -> None:
    if records.height:
        return
    why = "the subset is empty: give a budget of at least one record"
    if left_out:
        example = next(iter(left_out.values()))
        why = (
            f"none of the subset's {len(left_out):,} records can be trained on (the first: "
            f"{example}); widen the window or choose other records"
        )
    raise Refused(Fault(f"nothing to train on: {why}", field="records"))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside, and leave the caller's random state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
