"""The model card (`README.md`) in every adapter's folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.report import render
from delift_pipeline.evaluation.result import Evaluation, differences
from delift_pipeline.lineage.tracking import split_arm
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.training.log import TrainingLog

CARD = "README.md"
MOST_SOURCES = 20
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def write_card(
    folder: Path,
    dataset: DatasetVersion,
    arm: str,
    settings: Mapping[str, Any],
    model: str,
    records: pl.DataFrame,
    adapter: Manifest,
    subset: Manifest,
    log: TrainingLog,
    measured: Evaluation | None = None,
    beside: Mapping[str, Evaluation | None] | None = None,
) -> Path:
    """Write the card into an adapter's folder. Equal facts give equal bytes.

    `settings` are the arm's settings in `arms.yaml`, `model` is a name and never a path, `records`
    the subset (`RECORD_SCHEMA`), and `beside` the evaluations that `measured` is compared with.
    """
    stage, selector = split_arm(arm)
    gaps = {
        name: differences(measured, other)
        for name, other in (beside or {}).items()
        if measured and other
    }
    text = render(
        "card.md.j2",
        Path(__file__).parent,
        arm=arm,
        stage=stage,
        selector=selector,
        settings=settings,
        dataset=dataset,
        model=model,
        adapter=adapter,
        subset=subset,
        log=log,
        measured=measured,
        metrics=METRICS,
        gaps=gaps,
        sources=_sources(records, log),
    )
    write_text(folder / CARD, re.sub(r"\n{3,}", "\n\n", text) + "\n")
    return folder / CARD


def card_text(folder: Path) -> str:
    """Return the card in an adapter's folder without its front matter; empty if there is none."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return _FRONT_MATTER.sub("", text)


def _sources(records: pl.DataFrame, log: TrainingLog) -> list[tuple[str, str]]:
    """Count the training records of each source, most first; empty if no record has a source."""
    used = records.filter(~pl.col("record_id").is_in(list(log.records_left_out)))
    if not (used["source"] != "").any():
        return []
    counts = used.group_by("source").len().sort(["len", "source"], descending=[True, False])
    rows = [(name or "(none named)", f"{count:,}") for name, count in counts.iter_rows()]
    more = len(rows) - MOST_SOURCES
    return rows if more <= 0 else [*rows[:MOST_SOURCES], (f"{more:,} more sources", "")]
