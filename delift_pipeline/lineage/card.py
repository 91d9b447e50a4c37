"""The model card (`README.md`) that lies in every adapter's folder."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.formatting import with_error
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import Evaluation, differences
from delift_pipeline.lineage.tracking import split_arm
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.training.log import TrainingLog

CARD = "README.md"
TEMPLATE = "card.md.j2"
SOURCES_SHOWN = 20
_LONGEST_NAME = 80
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f`|<>\u2028\u2029]+")


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
    """Write the card into an adapter's folder; equal facts give equal bytes.

    `settings` is what `arms.yaml` says of the arm, `model` a name and never a path, `records` the
    subset (`RECORD_SCHEMA`), and `beside` the evaluations that `measured` is compared with.
    """
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
    environment.filters.update(
        code=_code,
        quoted=json.dumps,
        count="{:,}".format,
        mean=partial(with_error, digits=4, ascii_only=True),
    )
    stage, selector = split_arm(arm)
    gaps = {
        name: differences(measured, other)
        for name, other in (beside or {}).items()
        if measured and other
    }
    text = environment.get_template(TEMPLATE).render(
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
    write_text(folder / CARD, re.sub(r"\n{3,}", "\n\n", text))
    return folder / CARD


def card_text(folder: Path) -> str:
    """The card in an adapter's folder as a person reads it; empty where there is none."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return _FRONT_MATTER.sub("", text)


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
