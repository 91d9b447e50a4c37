"""What every stage returns, and what it reads from the stage before it."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.lineage.version import ancestors
from delift_pipeline.records.stored import DatasetVersion, load_version


@dataclass(frozen=True)
class Result:
    """What a stage wrote or found.

    Attributes:
        reused: Whether it was found whole, so that nothing had to be done.
    """

    home: Home
    folder: Path
    manifest: Manifest
    reused: bool

    @property
    def path(self) -> str:
        """The folder, relative to the home."""
        return self.folder.relative_to(self.home.root).as_posix()


def required_manifest(folder: Path, reason: str, field: str | None = None) -> Manifest:
    """The manifest in a folder.

    Raises:
        Refused: there is none, and the user's `field` asked for it.
        DeliftError: there is none, and no field did.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise Refused(reason, field=field) if field else DeliftError(reason)
    return manifest


def known_records(home: Home, dataset: DatasetVersion) -> pl.DataFrame:
    """The records of a version's pool, of its ancestors' pools and of its target set, each once."""
    pools = [load_version(home, name).pool for name in ancestors(home, dataset)]
    frames = [dataset.pool, *pools, *([] if dataset.target is None else [dataset.target])]
    return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)
