"""The result that every stage returns, and the inputs that stages read."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.lineage.version import ancestors
from delift_pipeline.records.stored import DatasetVersion, load_version


@dataclass(frozen=True)
class Result:
    """A stored artifact that a stage wrote, or found stored with the same inputs.

    Attributes:
        reused: Whether it was stored already, so that the stage had nothing to do.
    """

    home: Home
    folder: Path
    manifest: Manifest
    reused: bool

    @property
    def path(self) -> str:
        """The path of the folder, relative to the home."""
        return self.folder.relative_to(self.home.root).as_posix()


def required_manifest(folder: Path, reason: str, field: str | None = None) -> Manifest:
    """Return the manifest in a folder.

    Raises:
        InputError: there is none, and the user asked for it by `field`.
        DeliftError: there is none, and `field` is None.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(reason, field=field) if field else DeliftError(reason)
    return manifest


def known_records(home: Home, dataset: DatasetVersion) -> pl.DataFrame:
    """Return all records of a version's pool, of its ancestors' pools and of its target set."""
    pools = [load_version(home, name).pool for name in ancestors(home, dataset)]
    frames = [dataset.pool, *pools, *([] if dataset.target is None else [dataset.target])]
    return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)
