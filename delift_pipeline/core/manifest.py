"""Manifests: what an artifact is, what it was made of, and its content hash.

Lineage lives here, so that it survives the loss of Dagster's and MLflow's databases. The content
hash (the Dagster data version) covers what was made and never when or where it was made.
"""

import datetime as dt
import importlib.metadata
import subprocess
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from delift_pipeline import __version__
from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError

MANIFEST = "manifest.json"
REBUILD = "rebuild.json"
TRACKED_PACKAGES = ("torch", "transformers", "peft", "polars", "numpy", "dagster", "mlflow")


class Manifest(BaseModel):
    """One artifact's manifest.

    Attributes:
        kind: `dataset`, `plan`, `scores`, `kernel`, `subset`, `adapter` or `report`.
        content_hash: Digest of what was written; equal to the Dagster data version.
        parents: Name of each artifact read (`dataset:v1`, `kernel:v1:self`, ...) -> its hash.
        fingerprint: The scoring fingerprint, where one applies.
        counts: Sizes worth reading (records, pairs, shards, ...).
        details: Everything particular to the kind.
        request: What was asked for (options); equal request and parents mean nothing to redo.
        code_version: The asset's code version.
        run_id: The Dagster run that made it, if any.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str
    content_hash: str
    parents: dict[str, str] = Field(default_factory=dict)
    fingerprint: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    request: dict[str, Any] = Field(default_factory=dict)
    code_version: str = "1"
    run_id: str | None = None
    created: str = Field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    )
    delift_version: str = __version__
    packages: dict[str, str] = Field(default_factory=lambda: dict(package_versions()))
    git_commit: str | None = Field(default_factory=lambda: git_commit())

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, atomically; a mark to rebuild it is settled."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))
        (folder / REBUILD).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, or None where there is none.

    Raises:
        DeliftError: the manifest is there and cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValueError as error:
        reason = f"{path}: the manifest is damaged ({error}); rebuild this artifact"
        raise DeliftError(reason) from error


def up_to_date(
    folder: Path, request: dict[str, Any], parents: dict[str, str], code_version: str
) -> Manifest | None:
    """The stored manifest, if the same request on the same parents made it; else None.

    An artifact that is marked for rebuilding is not up to date, whatever it was made of.
    """
    manifest = read_manifest(folder)
    if manifest is None or rebuild_reason(folder):
        return None
    stored = (manifest.request, manifest.parents, manifest.code_version)
    return manifest if stored == (request, parents, code_version) else None


def mark_for_rebuilding(folder: Path, reason: str) -> None:
    """Have an artifact made again by the next run that asks for it."""
    write_json(folder / REBUILD, {"reason": reason})


def rebuild_reason(folder: Path) -> str | None:
    """Why an artifact is marked for rebuilding, or None."""
    path = folder / REBUILD
    return read_json(path)["reason"] if path.is_file() else None


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results, by name."""
    versions = {}
    for name in TRACKED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit this code was checked out at, or None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
