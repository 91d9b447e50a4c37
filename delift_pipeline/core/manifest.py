"""Manifests: what an artifact is, its parents, and its content hash.

Lineage is stored here, so it survives the loss of Dagster's and MLflow's databases. The content
hash (the Dagster data version) covers the content, never when or where it was written.
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
        content_hash: Digest of the content; equal to the Dagster data version.
        parents: Name of each artifact read (`dataset:v1`, `kernel:v1:self`, ...) -> its hash.
        fingerprint: The scoring fingerprint, where one applies.
        counts: Sizes (records, pairs, shards, ...).
        details: Facts that only this kind of artifact has.
        request: The options. If request and parents are the same again, the artifact is reused.
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
        """Write `manifest.json` into a folder and remove a mark to rebuild it."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))
        (folder / REBUILD).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest in a folder; return None where there is none.

    Raises:
        DeliftError: the manifest is there and cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValueError as error:
        reason = f"{path}: the manifest is damaged ({error}). Rebuild this artifact."
        raise DeliftError(reason) from error


def up_to_date(
    folder: Path, request: dict[str, Any], parents: dict[str, str], code_version: str
) -> Manifest | None:
    """Return the stored manifest if its request, parents and code version are the same, else None.

    An artifact that is marked for rebuilding is never up to date.
    """
    manifest = read_manifest(folder)
    if manifest is None or rebuild_reason(folder):
        return None
    stored = (manifest.request, manifest.parents, manifest.code_version)
    return manifest if stored == (request, parents, code_version) else None


def mark_for_rebuilding(folder: Path, reason: str) -> None:
    """Mark an artifact, so the next run that needs it makes it again."""
    write_json(folder / REBUILD, {"reason": reason})


def rebuild_reason(folder: Path) -> str | None:
    """Return why an artifact is marked for rebuilding, or None."""
    path = folder / REBUILD
    return read_json(path)["reason"] if path.is_file() else None


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect results, by name."""
    versions = {}
    for name in TRACKED_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Return the git commit of this code, or None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
