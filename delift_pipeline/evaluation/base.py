"""The base model's metrics: measured once per version and fingerprint, read by every report."""

from collections.abc import Callable
from typing import Any

import polars as pl
from filelock import FileLock

from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.result import Evaluation, read_evaluation, write_evaluation
from delift_pipeline.progress import Progress
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.storage.atomic import replacing_folder
from delift_pipeline.storage.hashing import digest_frame
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, up_to_date

CODE_VERSION = "1"


def base_evaluation(
    home: Home,
    version: str,
    model_options: ModelOptions,
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

    def measure() -> Evaluation:
        from delift_pipeline.evaluation.run import evaluate

        return evaluate(model_options, None, heldout, options, progress)

    return stored_base_evaluation(home, version, fingerprint, heldout, options, measure)


def stored_base_evaluation(
    home: Home,
    version: str,
    fingerprint: str,
    heldout: pl.DataFrame,
    options: EvaluationOptions,
    measure: Callable[[], Evaluation],
) -> Evaluation:
    """The stored evaluation of this request, else what `measure` finds, stored."""
    folder = home.base_report(version, fingerprint)
    request: dict[str, Any] = {"evaluation": options.request}
    parents = {"model": fingerprint, "heldout": digest_frame(heldout)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if up_to_date(folder, request, parents, CODE_VERSION):
            stored = read_evaluation(folder)
            if stored is not None:
                return stored
        evaluation = measure()
        facts = {"kind": "initial", "version": version, "fingerprint": fingerprint}
        with replacing_folder(folder) as temporary:
            write_evaluation(temporary, evaluation, facts)
            _manifest(evaluation, fingerprint, request, parents).write(temporary)
        return evaluation


def _manifest(
    evaluation: Evaluation, fingerprint: str, request: dict[str, Any], parents: dict[str, str]
) -> Manifest:
    return Manifest(
        kind="report",
        content_hash=evaluation.content_hash,
        parents=parents,
        fingerprint=fingerprint,
        counts=evaluation.counts,
        request=request,
        code_version=CODE_VERSION,
    )
