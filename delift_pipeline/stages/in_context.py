"""What an arm's subset is worth untrained: the base model behind its nearest chosen records."""

from pathlib import Path

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.result import Evaluation, read_evaluation, write_evaluation
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.adapter import subset_records
from delift_pipeline.stages.arms import Arm

NAME = "in_context"


def in_context_of(
    home: Home,
    dataset: DatasetVersion,
    arm: Arm,
    model: ModelOptions,
    heldout: pl.DataFrame,
    stored: Path | None,
    progress: Progress,
) -> Evaluation | None:
    """The in-context evaluation of an arm's subset; None where the arm does not ask for it.

    It is read from `stored`, the folder of a report that still holds, where there is one.
    """
    if not arm.evaluation.in_context:
        return None
    if stored and (found := read_evaluation(stored / NAME)):
        return found
    from delift_pipeline.evaluation.engines import load_trained
    from delift_pipeline.evaluation.in_context import evaluate_in_context

    chosen = subset_records(home, dataset, arm.name)
    loaded = load_trained(model, None, arm.evaluation)
    return evaluate_in_context(loaded, chosen, heldout, arm.evaluation, progress)


def write_in_context(folder: Path, evaluation: Evaluation | None) -> None:
    """Keep it in a folder of its own inside the report's."""
    if evaluation is not None:
        write_evaluation(folder / NAME, evaluation, {"kind": NAME})
