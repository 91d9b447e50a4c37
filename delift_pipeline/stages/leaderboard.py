"""The stage behind `leaderboard`: write all reports as one table and one page."""

from dataclasses import dataclass

import polars as pl

from delift_pipeline.core.hashing import digest_frame
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation import leaderboard
from delift_pipeline.evaluation.leaderboard import Row
from delift_pipeline.stages.result import Result

CODE_VERSION = "1"


@dataclass(frozen=True)
class LeaderboardResult(Result):
    """The stored leaderboard, as rows and as a data frame."""

    rows: list[Row]
    frame: pl.DataFrame


def make_leaderboard(home: Home, run_id: str | None = None) -> LeaderboardResult:
    """Write `reports/leaderboard/` from all stored reports."""
    rows = leaderboard.leaderboard_rows(home)
    page, frame = leaderboard.write_leaderboard(home, rows), leaderboard.leaderboard_frame(rows)
    manifest = Manifest(
        kind="report",
        content_hash=digest_frame(frame.drop("seconds")),
        counts={"rows": frame.height, "versions": frame["version"].n_unique()},
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    manifest.write(home.leaderboard)
    return LeaderboardResult(home, page, manifest, False, rows, frame)
