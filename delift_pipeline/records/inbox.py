"""Versions dropped into `inbox/<version>/`: their files and their `version.yaml`."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.versions import ingest
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest

ABOUT = "version.yaml"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")


class Dropped(BaseModel):
    """The `version.yaml` of a dropped folder; every field may be left out."""

    model_config = ConfigDict(extra="forbid")

    dataset: str | None = None
    parents: list[str] = []
    coverage: str = "auto"
    existing: str = "subset"
    model: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    skip_bad: bool = False


def ingest_dropped(home: Home, version: str) -> Manifest:
    """Store the version lying in `inbox/<version>/`: `pool.*`, perhaps `target.*`, `heldout.*`.

    Raises:
        Refused: there is no such folder, it has no pool file, or its files are faulty.
    """
    folder = home.inbox / version
    pool = _part(folder, "pool")
    if pool is None:
        known = ", ".join(home.versions()) or "none yet"
        reason = (
            f"no version {version!r} is stored (known are: {known}) and inbox/{version}/ holds no "
            "pool file: `delift ingest FILE --version V` first"
        )
        raise Refused(Fault(reason, field="version"))
    about = _about(folder / ABOUT)
    return ingest(
        home,
        pool,
        version=version,
        parents=about.parents,
        target=_part(folder, "target"),
        heldout=_part(folder, "heldout"),
        **about.model_dump(exclude={"parents", "columns"}),
        mapping=about.columns,
    )


def _part(folder: Path, part: str) -> Path | None:
    for suffix in SUFFIXES:
        for compression in COMPRESSIONS:
            path = folder / f"{part}{suffix}{compression}"
            if path.is_file():
                return path
    return None


def _about(path: Path) -> Dropped:
    if not path.is_file():
        return Dropped()
    try:
        loaded: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return Dropped.model_validate(loaded)
    except yaml.YAMLError as error:
        raise Refused(Fault(f"not YAML: {error}", file=ABOUT)) from error
    except ValidationError as error:
        raise Refused(
            *(
                Fault(item["msg"], file=ABOUT, field=".".join(str(p) for p in item["loc"]))
                for item in error.errors()
            )
        ) from error
