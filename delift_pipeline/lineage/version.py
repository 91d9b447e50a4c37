"""What a version changed against its parents, and what that did to each arm's subset."""

from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.home import Home, checked_version
from delift_pipeline.lineage.artifacts import Artifact, arm_artifacts
from delift_pipeline.lineage.existing import subset_before
from delift_pipeline.records.stored import known_manifest
from delift_pipeline.selection.run import DROPPED, SUBSET


@dataclass(frozen=True)
class VersionLineage:
    """A version beside its parents.

    Attributes:
        parents: For each parent: the records added, removed and changed, and how many stayed.
        children: Stored versions that follow it.
        subsets: For each arm and parent: which picks stayed, came and went, and why.
    """

    version: str
    dataset: str
    content_hash: str
    counts: dict[str, int]
    parents: list[dict[str, Any]] = field(repr=False)
    children: list[str]
    subsets: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Change:
    """One version against one parent, in record_ids.

    Attributes:
        added: New content under an id that the parent does not have.
        removed: In the parent only, and no changed record has its id.
        changed: (before, after): other content under an id of the parent's.
        unchanged: How many records both have.
    """

    added: list[str]
    removed: list[str]
    changed: list[tuple[str, str]]
    unchanged: int

    def came(self, record: str, parent: str) -> str:
        """Why a record is in the subset now and was not in the parent's."""
        if record in self.added:
            return f"new: {parent} does not have it"
        if record in {after for _, after in self.changed}:
            return f"changed since {parent}"
        return f"{parent} had it and did not take it"

    def went(self, record: str, covered: dict[str, str | None]) -> str:
        """Why a record of the parent's subset is not in this one."""
        if record in self.removed:
            return "removed from the pool"
        if record in {before for before, _ in self.changed}:
            return "changed"
        if covered.get(record):
            return f"{covered[record]} stands for it now"
        if record in covered:
            return "still there and no longer taken"
        return "no longer to choose from: the parent has it"


def version_lineage(home: Home, version: str) -> VersionLineage:
    """Compare a version and its arms with each parent.

    Raises:
        Refused: there is no such version.
    """
    manifest = known_manifest(home, checked_version(version))
    changes = {parent: _change(home, parent, version) for parent in manifest.details["parents"]}
    return VersionLineage(
        version=version,
        dataset=manifest.details["dataset"],
        content_hash=manifest.content_hash,
        counts=manifest.counts,
        parents=[{"version": name, **asdict(change)} for name, change in changes.items()],
        children=[
            other
            for other in home.versions()
            if version in known_manifest(home, other).details["parents"]
        ],
        subsets=[
            _moved(home, subset, parent, change)
            for subset in arm_artifacts(home, "subset", version)
            for parent, change in changes.items()
        ],
    )


def _change(home: Home, parent: str, version: str) -> Change:
    """What a version's pool changed against one parent's; a record is changed by its source id."""
    before, after = (
        pl.read_parquet(home.dataset(name) / "pool.parquet", columns=["record_id", "source_ids"])
        for name in (parent, version)
    )
    new = after.join(before, on="record_id", how="anti", maintain_order="left")
    gone = before.join(after, on="record_id", how="anti", maintain_order="left")
    pairs = new.explode("source_ids").join(
        gone.explode("source_ids"), on="source_ids", suffix="_before", maintain_order="left_right"
    )
    old, first = pairs["record_id_before"], pairs["record_id"]
    return Change(
        added=new.filter(~pl.col("record_id").is_in(first.implode()))["record_id"].to_list(),
        removed=gone.filter(~pl.col("record_id").is_in(old.implode()))["record_id"].to_list(),
        changed=list(dict.fromkeys(zip(old, first, strict=True))),
        unchanged=after.height - new.height,
    )


def _moved(home: Home, subset: Artifact, parent: str, change: Change) -> dict[str, Any]:
    """One arm's subset against the parent's of the same arm, or of its first stage."""
    arm = str(subset.arm)
    before = subset_before(home, parent, arm)
    now = _picks(subset)
    entry = {"arm": arm, "parent": parent, "selected": len(now)}
    if before is None:
        return {**entry, "against": None, "kept": None, "came": [], "went": []}
    then = _picks(before)
    # Dropped record -> the chosen one that stands for it, or None.
    pair = ["record_id", "covered_by"]
    covered = dict(pl.read_parquet(subset.folder / DROPPED, columns=pair).select(pair).iter_rows())
    return {
        **entry,
        "against": before.arm,
        "kept": len(now.keys() & then.keys()),
        "came": [
            {"record_id": one, "why": change.came(one, parent)} for one in now if one not in then
        ],
        "went": [
            {"record_id": one, "why": change.went(one, covered)} for one in then if one not in now
        ],
    }


def _picks(subset: Artifact) -> dict[str, None]:
    """The records of a subset, in rank order."""
    picks = pl.read_parquet(subset.folder / SUBSET, columns=["record_id"])
    return dict.fromkeys(picks["record_id"])
