"""What Dagster shows of a stage's result, before it is converted to Dagster's types."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.atomic import replace_file
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.stages.result import Result

PREVIEW_ROWS = 20
PREVIEW_CHARACTERS = 160
Facts = dict[str, float | int | str]


@dataclass(frozen=True)
class Check:
    """The result of one check on what a stage wrote.

    Attributes:
        note: One sentence, with numbers.
        facts: Numbers worth plotting over time.
    """

    passed: bool
    note: str
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of a stage, as Dagster shows it.

    Attributes:
        path: The artifact's folder, relative to the home.
        reused: Whether the stored artifact was up to date, so nothing had to be done.
        plots: PNG images by title.
        tables: Small tables to show by title, at most `PREVIEW_ROWS` rows each.
    """

    manifest: Manifest
    path: str
    reused: bool = False
    facts: Facts = field(default_factory=dict)
    plots: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Result, **fields: Any) -> "Outcome":
        """Return the outcome of a stage's result. `fields` are the other attributes."""
        return cls(result.manifest, result.path, result.reused, **fields)


def load_plot(path: Path, draw: Callable[[], bytes]) -> bytes:
    """Read the PNG in an artifact's folder, and draw it first if it is missing.

    When an artifact is made again, its folder is replaced, and its plots with it.
    """
    if not path.is_file():
        png = draw()
        with replace_file(path) as temporary:
            temporary.write_bytes(png)
    return path.read_bytes()


def preview(frame: pl.DataFrame, columns: tuple[str, ...]) -> pl.DataFrame:
    """Return the first rows of some columns with short texts, for the metadata."""
    short = frame.select(columns).head(PREVIEW_ROWS)
    return short.with_columns(pl.col(pl.String).str.slice(0, PREVIEW_CHARACTERS))
