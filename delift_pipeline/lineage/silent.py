"""A tracker for tracking that is switched off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.storage.home import Home


class SilentTracker(Tracker):
    """Takes everything and keeps nothing; opens no store."""

    def __init__(self, home: Home) -> None:
        super().__init__(home, lazy=True)

    def start_run(
        self,
        version: str,
        arm: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """No run: the empty id."""
        return ""

    def exists(self, run_id: str) -> bool:
        """Never."""
        return False

    def set_tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_artifacts(self, run_id: str, folder: Path, path: str | None = None) -> None:
        """Nothing."""

    def log_dataset(
        self,
        run_id: str,
        frame: pl.DataFrame,
        name: str,
        digest: str,
        context: str,
        source: str | None = None,
    ) -> None:
        """Nothing."""

    def log_adapter(
        self, run_id: str, folder: Path, name: str, params: Mapping[str, Any] | None = None
    ) -> str:
        """No model: the empty id."""
        return ""

    def link(self, run_id: str) -> str:
        """No page."""
        return ""

    def end_run(self, run_id: str, ok: bool = True) -> None:
        """Nothing."""

    def _log_points(
        self, run_id: str, series: Mapping[str, list[tuple[int, float]]], tags: Mapping[str, str]
    ) -> None:
        return
