"""The step behind `leaderboard`: all reports in one table and one page."""

import polars as pl

from delift_pipeline.evaluation.leaderboard import (
    PAGE,
    Row,
    leaderboard_frame,
    leaderboard_rows,
    write_leaderboard,
)
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.report import metric_bars
from delift_pipeline.plots import bars, png
from delift_pipeline.steps.outcome import PREVIEW_ROWS, Outcome
from delift_pipeline.storage.hashing import digest_frame
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest

CODE_VERSION = "1"
SHOWN = ("version", "stage", "selector", "budget", "records", *METRICS)


def make_leaderboard(home: Home, run_id: str | None = None) -> Outcome:
    """Write `reports/leaderboard/` from the reports that are there."""
    rows = leaderboard_rows(home)
    page = write_leaderboard(home, rows)
    frame = leaderboard_frame(rows)
    manifest = Manifest(
        kind="report",
        content_hash=digest_frame(frame.drop("seconds")),
        counts={"rows": frame.height, "versions": frame["version"].n_unique()},
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    manifest.write(home.leaderboard)
    shown = frame.select(SHOWN).with_columns(pl.col(pl.Float64).round(4)).head(PREVIEW_ROWS)
    return Outcome(
        manifest=manifest,
        path=page.relative_to(home.root).as_posix(),
        facts={**manifest.counts, "page": PAGE},
        plots=_plots(rows),
        tables={"leaderboard": shown},
    )


def _plots(rows: list[Row]) -> dict[str, bytes]:
    """The arms of the version and stage that come last in the table, side by side."""
    if not rows:
        return {}
    version, stage = rows[-1]["version"], rows[-1]["stage"]
    arms = [row for row in rows if (row["version"], row["stage"]) == (version, stage)]
    models = [
        (row["arm"].split(".", 1)[-1], row["metrics"], "plain" if place else "chosen")
        for place, row in enumerate(arms)
    ]
    return {f"{version} {stage}": png(bars(metric_bars(models)))}
