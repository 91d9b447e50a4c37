"""The model card (`README.md`) that lies in every adapter's folder."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.arms import Arm
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import Evaluation, differences
from delift_pipeline.formatting import with_error
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.storage.manifest import Manifest
from delift_pipeline.training.log import TrainingLog

if TYPE_CHECKING:
    from jinja2 import Environment

CARD = "README.md"
TEMPLATE = "card.md.j2"
SOURCES_SHOWN = 20
_LONGEST_NAME = 80
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f`|<>\u2028\u2029]+")


def write_card(
    folder: Path,
    dataset: DatasetVersion,
    arm: Arm,
    model: str,
    records: pl.DataFrame,
    adapter: Manifest,
    subset: Manifest,
    log: TrainingLog,
    measured: Evaluation | None = None,
    beside: Mapping[str, Evaluation | None] | None = None,
) -> Path:
    """Write the card into an adapter's folder; equal facts give equal bytes.

    Args:
        folder: The adapter's folder.
        dataset: The version.
        arm: The arm.
        model: The base model's name, never a path.
        records: The subset's records (`RECORD_SCHEMA`).
        adapter: The adapter's manifest.
        subset: The subset's manifest.
        log: What training did.
        measured: The adapter's evaluation, once there is one.
        beside: The evaluations it is compared with, by name.

    Returns:
        The card's path.
    """
    made_of = _made_of(dataset, arm, model, adapter, subset, log)
    found = _measurements(measured, beside or {})
    text = (
        _environment()
        .get_template(TEMPLATE)
        .render(**made_of, **found, sources=_sources(records, log))
    )
    write_text(folder / CARD, re.sub(r"\n{3,}", "\n\n", text))
    return folder / CARD


def card_text(folder: Path) -> str:
    """The card in an adapter's folder as a person reads it; empty where there is none."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return _FRONT_MATTER.sub("", text)


def _made_of(
    dataset: DatasetVersion,
    arm: Arm,
    model: str,
    adapter: Manifest,
    subset: Manifest,
    log: TrainingLog,
) -> dict[str, Any]:
    value = subset.details.get("value")
    objective = f"{subset.details.get('objective')} = {value:.4f}" if value is not None else ""
    return {
        "version": dataset.version,
        "arm": arm.name,
        "stage": arm.stage,
        "selector": arm.selector,
        "budget": arm.budget,
        "seed": arm.seed,
        "model": model,
        "adapter": log.method != "full",
        "method": log.method,
        "fingerprint": adapter.fingerprint,
        "dataset": dataset.manifest.details["dataset"],
        "parents": dataset.parents,
        "data_hash": dataset.manifest.content_hash,
        "subset_hash": subset.content_hash,
        "adapter_hash": adapter.content_hash,
        "gain": objective,
        "records": f"{log.records_used:,}",
        "pool": f"{subset.counts['pool']:,}",
        "left_out": f"{len(log.records_left_out):,}",
        "steps": f"{log.steps:,}",
        "epochs": f"{log.epochs:.2f}",
        "trainable": f"{log.trainable_parameters:,}",
        "first_loss": f"{log.first_loss:.3f}",
        "last_loss": f"{log.last_loss:.3f}",
        "started_from": adapter.details.get("started_from"),
        "delift_version": adapter.delift_version,
    }


def _measurements(
    measured: Evaluation | None, beside: Mapping[str, Evaluation | None]
) -> dict[str, Any]:
    if measured is None:
        return {"metrics": [], "compared": [], "heldout": 0}
    others = {name: other for name, other in beside.items() if other is not None}
    gaps = {name: differences(measured, other) for name, other in others.items()}
    rows = [
        {
            "title": metric.title,
            "better": metric.better,
            "value": _text(measured.metrics[name], measured.metrics[f"{name}_se"]),
            "gaps": [
                _text(gap.mean, gap.se, sign=True) if (gap := found.get(name)) else "-"
                for found in gaps.values()
            ],
        }
        for name, metric in METRICS.items()
        if name in measured.metrics
    ]
    heldout = f"{measured.counts['records']:,}"
    return {"metrics": rows, "compared": list(others), "heldout": heldout}


_text = partial(with_error, digits=4, ascii_only=True)


def _sources(records: pl.DataFrame, log: TrainingLog) -> list[tuple[str, str]]:
    """Sources and how many of the records trained on each gave, most first; "" where none is."""
    used = records.filter(~pl.col("record_id").is_in(list(log.records_left_out)))
    if not (used["source"] != "").any():
        return []
    counts = used.group_by("source").len().sort(["len", "source"], descending=[True, False])
    rows = [(name or "(none named)", f"{count:,}") for name, count in counts.iter_rows()]
    more = len(rows) - SOURCES_SHOWN
    return rows if more <= 0 else [*rows[:SOURCES_SHOWN], (f"{more:,} more sources", "")]


def _code(text: str) -> str:
    """Text that comes from a user's data, safe between back-ticks in a table's cell."""
    plain = _UNSAFE.sub(" ", str(text)).strip()
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}..."


def _quoted(text: str) -> str:
    """A string that YAML and Python read alike."""
    return json.dumps(text)


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Markdown, not HTML: what comes from data goes through `code` or `quoted`.
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(code=_code, quoted=_quoted)
    return environment
