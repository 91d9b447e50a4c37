"""What every report of a stage shares: its held-out records and the base model's metrics."""

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import replacing_folder
from delift_pipeline.core.hashing import digest_frame
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import Manifest, up_to_date
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.result import Evaluation, read_evaluation, write_evaluation
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.options import Stage

CODE_VERSION = "1"


def stage_heldout(
    heldout: pl.DataFrame, target: pl.DataFrame | None, stage: Stage, options: EvaluationOptions
) -> pl.DataFrame:
    """The held-out records that tell how well a stage's goal is met.

    The task-specific stage chooses for the target set's tasks and is measured on these, where the
    held-out set has records of them and `options.target_tasks_only` stays on; every other stage is
    measured on the whole held-out set.
    """
    if stage != "task_specific" or target is None or not options.target_tasks_only:
        return heldout
    tasks = target["task"].filter(target["task"] != "").unique()
    chosen = heldout.filter(pl.col("task").is_in(tasks.implode()))
    return heldout if chosen.is_empty() else chosen


def base_evaluation(
    home: Home,
    version: str,
    model: ModelOptions,
    fingerprint: str,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    progress: Progress | None = None,
) -> Evaluation:
    """The base model's evaluation, measured only where it is not stored yet.

    Runs of several arms may ask at once: one measures, the others wait for it. The folder
    `reports/<version>/initial-<fingerprint>` holds `report.json` (`kind`, `version`, `fingerprint`,
    `evaluation`), `samples.parquet` and the manifest.

    Raises:
        Refused: there is no held-out record.
        DeliftError: no held-out record can be measured.
    """
    folder = home.base_report(version, fingerprint)
    request = {"evaluation": options.request}
    parents = {"model": fingerprint, "heldout": digest_frame(heldout)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if up_to_date(folder, request, parents, CODE_VERSION):
            stored = read_evaluation(folder)
            if stored is not None:
                return stored
        from delift_pipeline.evaluation.run import evaluate

        evaluation = evaluate(model, None, heldout, options, progress)
        manifest = Manifest(
            kind="report",
            content_hash=evaluation.content_hash,
            parents=parents,
            fingerprint=fingerprint,
            counts=evaluation.counts,
            request=request,
            code_version=CODE_VERSION,
        )
        facts = {"kind": BASE_MODEL, "version": version, "fingerprint": fingerprint}
        with replacing_folder(folder) as temporary:
            write_evaluation(temporary, evaluation, facts)
            manifest.write(temporary)
        return evaluation
