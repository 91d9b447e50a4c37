"""Settling which records of a new version are pool, target and held-out set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.identity import content_hash
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.records.stored import load_version
from delift_pipeline.storage.hashing import digest_json, digest_text
from delift_pipeline.storage.home import Home

PARTS = ("pool", "target", "heldout")
KEPT = "columns"
SHARE = 0.1
SEED = 0
NAMED_IDS = 20
_NAMES = {"pool": "the pool", "target": "the target set", "heldout": "the held-out set"}


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

    Without a held-out file the first parent's set is taken, and what that one once set aside stays
    out of every later pool. Without a parent a share of the pool is set aside.

    Args:
        home: Where the parents are stored.
        files: What was read for `pool`, and for `target` and `heldout` where they were given.
        parents: Stored versions.

    Raises:
        Refused: sets share records (each pair named with its ids), or nothing is left of the pool.
    """
    versions = [load_version(home, name) for name in parents]
    pool, derived = files["pool"].frame, files["pool"].derived
    target = files.get("target")
    details: dict[str, Any] = {}
    if given := files.get("heldout"):
        heldout, heldout_hash = given.frame, content_hash(given.frame, given.derived)
    elif versions:
        about, heldout = versions[0].manifest.details, versions[0].heldout
        heldout_hash = about["heldout_hash"]
        details = {"heldout_from": parents[0]}
        if "heldout_set_aside" in about:
            details["heldout_set_aside"] = about["heldout_set_aside"]
            pool = pool.join(heldout, on="record_id", how="anti", maintain_order="left")
    else:
        pool, heldout, details["heldout_set_aside"] = _set_aside(pool)
        heldout_hash = content_hash(heldout, derived)
    parts = Parts(
        pool,
        None if target is None else target.frame,
        heldout,
        {
            "pool": content_hash(pool, derived),
            "target": None if target is None else content_hash(target.frame, target.derived),
            "heldout": heldout_hash,
        },
        details,
        files["pool"].frame.height - pool.height if versions else 0,
    )
    faults = list(_overlaps(parts, {one.version: one.pool for one in versions}))
    if pool.is_empty():
        faults.append(Fault("every record is in the parent's held-out set", field="pool"))
    if faults:
        raise Refused(*faults)
    return parts


def _set_aside(pool: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Split a held-out set off a pool of at least two records.

    The records with the smallest seeded digests go, so that the choice depends on which records
    there are and never on their order.

    Returns:
        The remaining pool and the held-out set, both in file order, and what to record of it.
    """
    if pool.height < 2:
        reason = "one record cannot be both pool and held-out set: give a held-out file"
        raise Refused(Fault(reason, field="heldout"))
    rows = max(1, int(SHARE * pool.height + 0.5))
    drawn = sorted(pool["record_id"], key=lambda record: digest_text(f"heldout:{SEED}", record))
    inside = pl.col("record_id").is_in(drawn[:rows])
    recorded = {"share": SHARE, "seed": SEED, "rows": rows}
    return pool.filter(~inside), pool.filter(inside), recorded


def _overlaps(parts: Parts, parent_pools: Mapping[str, pl.DataFrame]) -> Iterator[Fault]:
    """A fault for each two sets that share records; the pools of parents may share the pool's."""
    present = {_NAMES[part]: frame for part, frame in parts.frames.items() if frame is not None}
    pairs = [("the pool", "target"), ("the pool", "heldout"), ("the target set", "heldout")]
    for version, pool in parent_pools.items():
        present[f"the pool of {version}"] = pool
        pairs.append((f"the pool of {version}", "heldout"))
    for left, part in pairs:
        right = _NAMES[part]
        if left not in present or right not in present:
            continue
        others = present[right].select("record_id")
        shared = present[left].join(others, on="record_id", how="semi")
        if shared.is_empty():
            continue
        named = shared.select("record_id", "source_ids").head(NAMED_IDS).iter_rows()
        names = ", ".join(f"{ids[0]} ({record})" for record, ids in named)
        more = ", ..." if shared.height > NAMED_IDS else ""
        reason = f"{shared.height} records are both in {left} and in {right}: {names}{more}"
        yield Fault(reason, field=part)
