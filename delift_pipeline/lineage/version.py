"""A version and its parents.

The records that the parents trained on are the existing records (D_E) of the continual stage. A
version is compared with each parent by record, and so are the subsets of its arms.
"""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home, check_version
from delift_pipeline.lineage.artifacts import Artifact, arm_artifacts, find_artifact
from delift_pipeline.records.stored import DatasetVersion, load_version, version_manifest
from delift_pipeline.selection.run import DROPPED, SUBSET


@dataclass(frozen=True)
class ExistingRecords:
    """The existing records of a version, for one arm.

    Attributes:
        records: The records, each once, in the order of the parents.
        parents: Name of each artifact they were read from -> its content hash.
        arms: Parent version -> the arm whose subset was read.
    """

    records: pl.DataFrame = field(repr=False)
    parents: dict[str, str]
    arms: dict[str, str]


def find_existing_records(home: Home, dataset: DatasetVersion, arm: str) -> ExistingRecords:
    """Return the records that the parents' models were trained on, under the same arm.

    A first version has no continual arm, so its instruction-tuning arm of the same selector is
    used. The existing records of a parent's continual arm are included too, back to the first
    version. With `existing: pool` they are the parents' whole pools.

    Raises:
        InputError: a parent has no such subset; the sentence says what to run.
    """
    frames: list[pl.DataFrame] = []
    parents: dict[str, str] = {}
    arms: dict[str, str] = {}
    for name in dataset.parents:
        parent = load_version(home, name)
        if dataset.manifest.details["existing"] == "pool":
            frames.append(parent.pool)
            parents[f"dataset:{name}"] = parent.manifest.content_hash
            continue
        subset = parent_subset(home, name, arm)
        if subset is None:
            fallback = fallback_arm(arm)
            raise InputError(
                f"arm {arm} of {dataset.version} continues what {name} trained on, but {name} "
                f"has no subset of {arm} or {fallback}. First run `delift run --version {name} "
                f"--arm {fallback}`, or ingest the version with existing: pool.",
                field="existing",
            )
        arms[name], parents[subset.name] = str(subset.arm), subset.manifest.content_hash
        ids = pl.read_parquet(subset.folder / SUBSET)["record_id"]
        frames.append(parent.pool.filter(pl.col("record_id").is_in(ids.implode())))
        if arms[name] == arm:
            before = find_existing_records(home, parent, arm)
            frames.append(before.records)
            parents |= before.parents
    records = pl.concat(frames).unique("record_id", keep="first", maintain_order=True)
    return ExistingRecords(records, parents, arms)


def fallback_arm(arm: str) -> str:
    """Return the instruction-tuning arm of the same selector, for a version without `arm`."""
    return f"instruction_tuning.{arm.split('.', 1)[1]}"


def parent_subset(home: Home, parent: str, arm: str) -> Artifact | None:
    """Return the parent's subset of the same arm, else of its `fallback_arm`, else None."""
    stored = (find_artifact(home, f"subset:{parent}:{name}") for name in (arm, fallback_arm(arm)))
    return next(filter(None, stored), None)


def ancestors(home: Home, dataset: DatasetVersion) -> list[str]:
    """Return all versions that a version descends from, nearest first, each once."""
    above: list[str] = []
    queue = list(dataset.parents)
    while queue:
        name = queue.pop(0)
        if name not in above:
            above.append(name)
            queue.extend(load_version(home, name).parents)
    return above


@dataclass(frozen=True)
class VersionLineage:
    """A version compared with its parents.

    Attributes:
        parents: For each parent: the records `added` (under a new source id), `removed` (their
            source id is gone) and `changed` ((before, after): new content under a source id of the
            parent), and how many are `unchanged`.
        children: Stored versions that have this version as a parent.
        subsets: For each arm and parent: how many picks stayed, which came and went, and why.
    """

    version: str
    dataset: str
    content_hash: str
    counts: dict[str, int]
    parents: list[dict[str, Any]] = field(repr=False)
    children: list[str]
    subsets: list[dict[str, Any]] = field(repr=False)


def version_lineage(home: Home, version: str) -> VersionLineage:
    """Compare a version and its arms with each parent.

    Raises:
        InputError: there is no such version.
    """
    manifest = version_manifest(home, check_version(version))
    changes = {parent: _change(home, parent, version) for parent in manifest.details["parents"]}
    return VersionLineage(
        version=version,
        dataset=manifest.details["dataset"],
        content_hash=manifest.content_hash,
        counts=manifest.counts,
        parents=[{"version": name, **change} for name, change in changes.items()],
        children=[
            other
            for other in home.versions()
            if version in version_manifest(home, other).details["parents"]
        ],
        subsets=[
            _subset_change(home, subset, parent, change)
            for subset in arm_artifacts(home, "subset", version)
            for parent, change in changes.items()
        ],
    )


def _change(home: Home, parent: str, version: str) -> dict[str, Any]:
    """Compare a version's pool with one parent's. Source ids show which records were changed."""
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
    return {
        "added": new.filter(~pl.col("record_id").is_in(first.implode()))["record_id"].to_list(),
        "removed": gone.filter(~pl.col("record_id").is_in(old.implode()))["record_id"].to_list(),
        "changed": list(dict.fromkeys(zip(old, first, strict=True))),
        "unchanged": after.height - new.height,
    }


def _subset_change(
    home: Home, subset: Artifact, parent: str, change: dict[str, Any]
) -> dict[str, Any]:
    """Compare one arm's subset with the parent's subset of the same arm or its `fallback_arm`."""
    arm, now = str(subset.arm), _picks(subset)
    before = parent_subset(home, parent, arm)
    entry = {"arm": arm, "parent": parent, "selected": len(now)}
    if before is None:
        return {**entry, "against": None, "kept": None, "came": [], "went": []}
    then = _picks(before)
    # Dropped record -> the chosen record that covers it, or None.
    pair = ["record_id", "covered_by"]
    dropped = pl.read_parquet(subset.folder / DROPPED, columns=pair).select(pair).iter_rows()
    came = dict.fromkeys((after for _, after in change["changed"]), f"changed since {parent}")
    came |= dict.fromkeys(change["added"], f"new: {parent} does not have it")
    not_chosen = "still in the pool, no longer chosen"
    went = {one: f"{by} covers it now" if by else not_chosen for one, by in dropped}
    went |= dict.fromkeys((one for one, _ in change["changed"]), "changed")
    went |= dict.fromkeys(change["removed"], "removed from the pool")
    known = f"{parent} had it and did not choose it"
    unknown = "no longer to choose from: the parent has it"
    return {
        **entry,
        "against": before.arm,
        "kept": len(now.keys() & then.keys()),
        "came": [{"record_id": one, "why": came.get(one, known)} for one in now if one not in then],
        "went": [
            {"record_id": one, "why": went.get(one, unknown)} for one in then if one not in now
        ],
    }


def _picks(subset: Artifact) -> dict[str, None]:
    """Return the records of a subset in rank order, as the keys of a dict."""
    picks = pl.read_parquet(subset.folder / SUBSET, columns=["record_id"])
    return dict.fromkeys(picks["record_id"])
