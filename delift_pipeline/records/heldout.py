"""Keeping pool, target and held-out records apart."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from delift_pipeline.errors import Fault
from delift_pipeline.storage.hashing import digest_text

SHARE = 0.1
SEED = 0
NAMED_IDS = 20


def set_aside(
    pool: pl.DataFrame, share: float = SHARE, seed: int = SEED
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Split a held-out set off a pool of at least two records.

    The records with the smallest seeded digests go, so that the choice depends on which records
    there are and never on their order.

    Returns:
        The remaining pool and the held-out set, both in file order, and what to record of it:
        `{"share", "seed", "rows"}`.
    """
    rows = max(1, int(share * pool.height + 0.5))
    drawn = sorted(pool["record_id"], key=lambda record: digest_text(f"heldout:{seed}", record))
    inside = pl.col("record_id").is_in(drawn[:rows])
    recorded = {"share": share, "seed": seed, "rows": rows}
    return pool.filter(~inside), pool.filter(inside), recorded


def withhold(pool: pl.DataFrame, heldout: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The pool without the held-out records, and how many those were."""
    kept = pool.join(heldout.select("record_id"), on="record_id", how="anti", maintain_order="left")
    return kept, pool.height - kept.height


def overlap_faults(
    left: tuple[str, pl.DataFrame], right: tuple[str, pl.DataFrame], field: str
) -> list[Fault]:
    """A fault naming the records that two named frames share, or nothing."""
    shared = left[1].join(right[1].select("record_id"), on="record_id", how="semi")
    if shared.is_empty():
        return []
    names = [
        f"{ids[0]} ({record})"
        for record, ids in shared.select("record_id", "source_ids").head(NAMED_IDS).iter_rows()
    ]
    more = ", ..." if shared.height > NAMED_IDS else ""
    reason = f"{shared.height} records are both in {left[0]} and in {right[0]}: {', '.join(names)}"
    return [Fault(reason + more, field=field)]


def disjoint_faults(
    parts: Mapping[str, pl.DataFrame | None], parent_pools: Mapping[str, pl.DataFrame]
) -> list[Fault]:
    """Every pair of a version's sets that shares records, its parents' pools included.

    Args:
        parts: `pool`, `target` and `heldout` of the version.
        parent_pools: The pools of its parents by version; they may share records with the pool.
    """
    named = {"pool": "the pool", "target": "the target set", "heldout": "the held-out set"}
    present = {part: (named[part], frame) for part, frame in parts.items() if frame is not None}
    faults: list[Fault] = []
    for left, right in (("pool", "target"), ("pool", "heldout"), ("target", "heldout")):
        if left in present and right in present:
            faults += overlap_faults(present[left], present[right], right)
    for version, pool in parent_pools.items():
        if "heldout" in present:
            faults += overlap_faults(
                (f"the pool of {version}", pool), present["heldout"], "heldout"
            )
    return faults
