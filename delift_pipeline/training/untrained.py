"""The base model in the form of a trained one, for the arm that selects nothing."""

from pathlib import Path

import torch

from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.log import TrainingLog, write_training_log
from delift_pipeline.training.loop import parameter_counts
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.setup import prepare


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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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
