"""Settling which records of a new version are pool, target and held-out set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.heldout import disjoint_faults, set_aside, withhold
from delift_pipeline.records.identity import content_hash
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home

PARTS = ("pool", "target", "heldout")
KEPT = "columns"


@dataclass(frozen=True)
class Parts:
    """A version's sets and how they came about.

    Attributes:
        pool: Records to choose from.
        target: Records of the target task, or None.
        heldout: Records for evaluation only.
        hashes: Content hash of each set by name; None where there is no set.
        details: What the manifest says of the held-out set's origin.
        withheld: How many rows of the pool's file were held out by a parent already.
    """

    pool: pl.DataFrame
    target: pl.DataFrame | None
    heldout: pl.DataFrame
    hashes: dict[str, str | None]
    details: dict[str, Any] = field(default_factory=dict)
    withheld: int = 0

    @property
    def frames(self) -> dict[str, pl.DataFrame | None]:
        """The sets by name."""
        return {"pool": self.pool, "target": self.target, "heldout": self.heldout}


def version_hash(details: Mapping[str, Any]) -> str:
    """A version's content hash, from its manifest's details: its sets and the columns kept."""
    kept = (KEPT,) if f"{KEPT}_hash" in details else ()
    return digest_json({part: details[f"{part}_hash"] for part in (*PARTS, *kept)})


def settle(home: Home, files: Mapping[str, RecordsFile], parents: tuple[str, ...]) -> Parts:
    """Find the held-out set and check that no two sets share a record.

    Args:
        home: Where the parents are stored.
        files: What was read for `pool`, and for `target` and `heldout` where they were given.
        parents: Stored versions.

    Raises:
        Refused: sets share records (each pair named with its ids), or nothing is left of the pool.
    """
    if "heldout" in files:
        parts = _given(files)
    elif parents:
        parts = _inherited(files, load_version(home, parents[0]))
    else:
        parts = _set_aside(files)
    pools = {name: load_version(home, name).pool for name in parents}
    faults = disjoint_faults(parts.frames, pools)
    if parts.pool.is_empty():
        faults.append(Fault("every record is in the parent's held-out set", field="pool"))
    if faults:
        raise Refused(*faults)
    return parts


def _hash(files: Mapping[str, RecordsFile], part: str) -> str | None:
    return content_hash(files[part].frame, files[part].derived) if part in files else None


def _target(files: Mapping[str, RecordsFile]) -> pl.DataFrame | None:
    return files["target"].frame if "target" in files else None


def _given(files: Mapping[str, RecordsFile]) -> Parts:
    hashes = {part: _hash(files, part) for part in PARTS}
    return Parts(files["pool"].frame, _target(files), files["heldout"].frame, hashes)


def _inherited(files: Mapping[str, RecordsFile], parent: DatasetVersion) -> Parts:
    """The parent's held-out set; what was once set aside stays out of every later pool."""
    about = parent.manifest.details
    pool, withheld = files["pool"].frame, 0
    details: dict[str, Any] = {"heldout_from": parent.version}
    if "heldout_set_aside" in about:
        details["heldout_set_aside"] = about["heldout_set_aside"]
        pool, withheld = withhold(pool, parent.heldout)
    hashes = {
        "pool": content_hash(pool, files["pool"].derived),
        "target": _hash(files, "target"),
        "heldout": about["heldout_hash"],
    }
    return Parts(pool, _target(files), parent.heldout, hashes, details, withheld)


def _set_aside(files: Mapping[str, RecordsFile]) -> Parts:
    whole, derived = files["pool"].frame, files["pool"].derived
    if whole.height < 2:
        reason = "one record cannot be both pool and held-out set: give a held-out file"
        raise Refused(Fault(reason, field="heldout"))
    pool, heldout, recorded = set_aside(whole)
    hashes = {
        "pool": content_hash(pool, derived),
        "target": _hash(files, "target"),
        "heldout": content_hash(heldout, derived),
    }
    return Parts(pool, _target(files), heldout, hashes, {"heldout_set_aside": recorded})
