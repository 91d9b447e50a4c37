"""Measure how much a continual model forgot, and evaluate the base model for comparison.

Forgetting is a matrix. Its rows are the models (the base model, then each version's), its columns
the held-out sets, oldest first. A model is measured on the held-out sets of its own version and of
all earlier ones. How much it forgot of an earlier version is its difference, paired by record, from
that version's model.
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
"""The code version of the base model's evaluation."""


@dataclass(frozen=True)
class Row:
    """One model's measurements.

    Attributes:
        model: The version that the model was trained on, or `initial` for the base model.
        arm: The arm of the model; None for the base model.
        cells: The model's evaluation on each held-out set, by version.
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
        """Return this model minus each earlier version's own model, on that version's set."""
        ours = self.rows[-1]
        theirs = {row.model: row for row in self.rows[:-1]}
        return {
            version: differences(ours.cells[version], theirs[version].cells[version])
            for version in self.heldout[:-1]
            if version in ours.cells and version in theirs and version in theirs[version].cells
        }

    def as_json(self) -> dict[str, Any]:
        """Return the matrix for `report.json`; null where a model was not measured."""
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
        """Return the matrix as a table: a row for each model and metric, a column for each set."""
        rows = [
            {"model": row.model, "arm": row.arm or "", "metric": name}
            | {f"on {v}": _cell(row, v, name) for v in self.heldout}
            for name in self.metrics()
            for row in self.rows
        ]
        return pl.DataFrame(rows)

    def metrics(self) -> list[MetricName]:
        """Return the metrics that this version's model was measured in."""
        measured = {name for cell in self.rows[-1].cells.values() for name in cell.metrics}
        return [name for name in METRICS if name in measured]

    def improvements(self) -> dict[str, float]:
        """Return by how much each earlier held-out set is answered better (positive) or worse."""
        return {
            f"improvement_on_{version}_{name}": gap.improvement
            for version, by_metric in self.changes().items()
            for name, gap in by_metric.items()
        }

    def page_tables(self) -> list[dict[str, Any]]:
        """Return a table for each metric, for the report's page."""
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
    """Return the measurements on one held-out set's records, or None if there are none."""
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
    """Return the base model's evaluation; it is measured only if it is not stored yet.

    If several arms need it at once, one run measures and the others wait. The folder
    `reports/<version>/initial-<fingerprint>` holds `report.json` (`kind`, `version`, `fingerprint`,
    `evaluation`), `samples.parquet` and the manifest.

    Raises:
        InputError: the held-out set is empty.
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
