"""What a model is compared with: the base model, and the models of earlier versions.

Forgetting is a matrix: row by row the models (the base model, then each version's), column by
column the held-out sets, oldest first. A model is measured on the held-out set of its own version
and of those before it; how much it forgot of an earlier one is its difference, paired by record, to
the model of that version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import replace_folder
from delift_pipeline.core.hashing import digest_frame
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.manifest import Manifest, up_to_date
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions, MetricName
from delift_pipeline.evaluation.result import (
    Difference,
    Evaluation,
    difference_cell,
    differences,
    metric_text,
    read_evaluation,
    summarise,
    write_evaluation,
)
from delift_pipeline.scoring.options import ModelOptions

CODE_VERSION = "1"
"""Of the base model's evaluation."""


@dataclass(frozen=True)
class Row:
    """One model's measurements.

    Attributes:
        model: The version whose model it is, or `initial` for the base model.
        arm: The arm it was trained for; None for the base model.
        cells: Evaluation on each held-out set it was measured on, by version.
    """

    model: str
    arm: str | None
    cells: Mapping[str, Evaluation] = field(repr=False)


@dataclass(frozen=True)
class Forgetting:
    """The matrix of models and held-out sets.

    Attributes:
        heldout: The versions whose held-out sets are the columns, oldest first; the last is the
            report's own.
        rows: The models, the base model first and the report's own last.
    """

    heldout: Sequence[str]
    rows: Sequence[Row] = field(repr=False)

    def changes(self) -> dict[str, dict[MetricName, Difference]]:
        """Earlier version -> what its held-out set lost or won from its own model to this one."""
        ours = self.rows[-1]
        theirs = {row.model: row for row in self.rows[:-1]}
        return {
            version: differences(ours.cells[version], theirs[version].cells[version])
            for version in self.heldout[:-1]
            if version in ours.cells and version in theirs and version in theirs[version].cells
        }

    def as_json(self) -> dict[str, Any]:
        """The matrix as `report.json` holds it; null where a model was not measured."""
        return {
            "heldout": list(self.heldout),
            "rows": [
                {
                    "model": row.model,
                    "arm": row.arm,
                    "metrics": {
                        v: row.cells[v].metrics if v in row.cells else None for v in self.heldout
                    },
                }
                for row in self.rows
            ],
            "changes": {
                version: {name: asdict(gap) for name, gap in by_metric.items()}
                for version, by_metric in self.changes().items()
            },
        }

    def frame(self) -> pl.DataFrame:
        """The matrix as a small table: a line for each model and metric, a column for each set."""
        lines = [
            {"model": row.model, "arm": row.arm or "", "metric": name}
            | {f"on {v}": _cell(row, v, name) for v in self.heldout}
            for name in self.metrics()
            for row in self.rows
        ]
        return pl.DataFrame(lines)

    def metrics(self) -> list[MetricName]:
        """The metrics that this version's model was measured in."""
        measured = {name for cell in self.rows[-1].cells.values() for name in cell.metrics}
        return [name for name in METRICS if name in measured]

    def improvements(self) -> dict[str, float]:
        """How much better (positive) or worse each earlier set is answered, for metadata."""
        return {
            f"improvement_on_{version}_{name}": gap.improvement
            for version, by_metric in self.changes().items()
            for name, gap in by_metric.items()
        }

    def page_tables(self) -> list[dict[str, Any]]:
        """A table for each metric, as the report's page shows it."""
        changes = self.changes()
        return [
            {
                "title": METRICS[name].title,
                "better": METRICS[name].better,
                "rows": [
                    {
                        "model": "base model" if row.model == BASE_MODEL else row.model,
                        "cells": [_cell(row, v, name) for v in self.heldout],
                    }
                    for row in self.rows
                ],
                "changes": [
                    difference_cell(changes.get(v, {}).get(name), absent="") for v in self.heldout
                ],
            }
            for name in self.metrics()
        ]


def evaluation_of(samples: pl.DataFrame, heldout: pl.Series) -> Evaluation | None:
    """The measurements on one held-out set's records; None where none of them was measured."""
    chosen = samples.filter(pl.col("record_id").is_in(heldout.implode())).sort("record_id")
    if chosen.is_empty():
        return None
    return Evaluation(summarise(chosen), chosen, {"records": chosen.height})


def _cell(row: Row, version: str, name: str) -> str:
    return metric_text(row.cells[version].metrics, name) if version in row.cells else ""


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
        with replace_folder(folder) as temporary:
            write_evaluation(temporary, evaluation, facts)
            manifest.write(temporary)
        return evaluation
