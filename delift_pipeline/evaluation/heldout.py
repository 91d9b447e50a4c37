"""Which held-out records a stage is measured on."""

import polars as pl

from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.selection.options import Stage


def stage_heldout(
    heldout: pl.DataFrame, target: pl.DataFrame | None, stage: Stage, options: EvaluationOptions
) -> pl.DataFrame:
    """The held-out records that tell how well a stage's goal is met.

    The task-specific stage chooses for the target set's tasks and is measured on these, where the
    held-out set has records of them; every other stage is measured on the whole held-out set.

    Args:
        heldout: All held-out records (`RECORD_SCHEMA`).
        target: The target set, or None.
        stage: The stage.
        options: `target_tasks_only` turns this off.
    """
    if stage != "task_specific" or target is None or not options.target_tasks_only:
        return heldout
    tasks = target["task"].filter(target["task"] != "").unique()
    chosen = heldout.filter(pl.col("task").is_in(tasks.implode()))
    return heldout if chosen.is_empty() else chosen
