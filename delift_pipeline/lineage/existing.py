"""D_E of the continual stage: what a version's parents trained on."""

from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home
from delift_pipeline.lineage.artifacts import Artifact, found
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.selection.run import SUBSET


@dataclass(frozen=True)
class Existing:
    """What the parents of a version trained on, for one arm.

    Attributes:
        records: The records, each once, parents in order.
        parents: Name of each artifact it was read from -> its content hash.
        arms: Parent version -> the arm whose subset was taken.
    """

    records: pl.DataFrame = field(repr=False)
    parents: dict[str, str]
    arms: dict[str, str]


def existing_of(home: Home, dataset: DatasetVersion, arm: str) -> Existing:
    """The records that the parents' models were trained on, under the same arm.

    A parent without that arm (a first version has no continual one) counts with its
    instruction-tuning arm of the same selector. What a parent's continual subset was added to
    counts too, back to the first version. `existing: pool` takes the parents' whole pools.

    Raises:
        Refused: a parent has no such subset; the sentence says what to run.
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
        subset = subset_before(home, name, arm)
        if subset is None:
            kin = kin_of(arm)
            raise Refused(
                f"arm {arm} of {dataset.version} continues what {name} trained on, and {name} "
                f"has no subset of {arm} or {kin}: `delift run --version {name} --arm {kin}` "
                "first, or ingest the version with existing: pool",
                field="existing",
            )
        arms[name], parents[subset.name] = str(subset.arm), subset.manifest.content_hash
        ids = pl.read_parquet(subset.folder / SUBSET)["record_id"]
        frames.append(parent.pool.filter(pl.col("record_id").is_in(ids.implode())))
        if arms[name] == arm:
            before = existing_of(home, parent, arm)
            frames.append(before.records)
            parents |= before.parents
    records = pl.concat(frames).unique("record_id", keep="first", maintain_order=True)
    return Existing(records, parents, arms)


def kin_of(arm: str) -> str:
    """The instruction-tuning arm of the same selector and variant, as first versions have."""
    return f"instruction_tuning.{arm.split('.', 1)[1]}"


def subset_before(home: Home, parent: str, arm: str) -> Artifact | None:
    """The parent's subset of the same arm, else of its kin (`kin_of`)."""
    stored = (found(home, f"subset:{parent}:{name}") for name in (arm, kin_of(arm)))
    return next(filter(None, stored), None)


def ancestors(home: Home, dataset: DatasetVersion) -> list[str]:
    """All versions a version descends from, nearest first, each once."""
    above: list[str] = []
    queue = list(dataset.parents)
    while queue:
        name = queue.pop(0)
        if name not in above:
            above.append(name)
            queue.extend(load_version(home, name).parents)
    return above
