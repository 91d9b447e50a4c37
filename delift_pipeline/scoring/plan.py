"""Build, write and read pair plans: the (target, demonstration) pairs that arms need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from delift_pipeline.core.atomic import read_json, replace_folder, write_json, write_parquet
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.hashing import digest_bytes, digest_json, digest_text
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.scoring.neighbours import Neighbours

BlockName = Literal["self", "target", "existing", "replay"]


@dataclass(frozen=True)
class PairBlock:
    """One block of pairs: a dense rectangle, or compressed sparse columns.

    In a dense block `indptr` and `indices` are None. Else demonstration j has the targets
    `indices[indptr[j]:indptr[j + 1]]`, sorted.

    Attributes:
        name: `self` (D x D), `target` (D_T x D), `existing` (D x D_E) or `replay` (D_E x D_E); rows
            are targets.
        targets: record_ids of the rows.
        demonstrations: record_ids of the columns.
        indptr: int64 [len(demonstrations) + 1] or None.
        indices: int32 [pairs] or None.
    """

    name: BlockName
    targets: tuple[str, ...]
    demonstrations: tuple[str, ...]
    indptr: np.ndarray | None = field(default=None, repr=False)
    indices: np.ndarray | None = field(default=None, repr=False)

    @property
    def dense(self) -> bool:
        """Whether the block has every pair of its rows and columns."""
        return self.indptr is None

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        if self.indices is None:
            return len(self.targets) * len(self.demonstrations)
        return len(self.indices)

    def targets_of(self, demonstration: int) -> np.ndarray:
        """Return the rows of the pairs in column `demonstration`: sorted numbers, int32."""
        if self.indptr is None or self.indices is None:
            return np.arange(len(self.targets), dtype=np.int32)
        return self.indices[self.indptr[demonstration] : self.indptr[demonstration + 1]]


@dataclass(frozen=True)
class PairPlan:
    """The blocks of pairs that a version's arms need. A pair may be in several blocks."""

    blocks: tuple[PairBlock, ...]

    @property
    def pairs(self) -> int:
        """The number of pairs, counted block by block."""
        return sum(block.pairs for block in self.blocks)

    def block(self, name: str) -> PairBlock | None:
        """Return the block of that name, or None if the plan has no such block."""
        return next((block for block in self.blocks if block.name == name), None)

    def records(self) -> Iterator[str]:
        """Iterate over the plan's record_ids, each once, in order of their first appearance."""
        ids = ((*block.targets, *block.demonstrations) for block in self.blocks)
        return iter(dict.fromkeys(chain.from_iterable(ids)))


SelfPairs = Literal["none", "neighbours", "all"]
NO_NEIGHBOUR = "no other prompt has a positive similarity to this one"
_BLOCKS = "blocks.json"


def build_plan(
    pool: pl.DataFrame,
    target: pl.DataFrame | None,
    existing: pl.DataFrame | None,
    *,
    self_pairs: SelfPairs,
    target_pairs: bool,
    existing_pairs: bool,
    neighbours: Neighbours | None,
    existing_rows: pl.DataFrame | None = None,
    replay: pl.DataFrame | None = None,
) -> PairPlan:
    """Build the plan of a pool D, a target set D_T and existing records D_E, block by block.

    Self pairs: `all` is D x D with its diagonal; `neighbours` has (i, j) and (j, i) wherever one is
    a neighbour of the other, at most 2 m n pairs and no diagonal. `existing_rows` are the rows of
    the block `existing` if they are fewer than the pool (records that are in no parent version,
    while another stage selects from all). `replay` has the existing records that may be replayed.

    Raises:
        InputError: a block lacks its records or neighbours.
    """
    ids, blocks = _ids(pool), []
    if self_pairs == "all":
        blocks.append(PairBlock("self", ids, ids))
    elif self_pairs == "neighbours":
        blocks.append(neighbour_block(ids, _require(neighbours, "self", "neighbours")))
    if target_pairs:
        blocks.append(PairBlock("target", _ids(_require(target, "target", "a target set")), ids))
    if existing_pairs:
        rows = ids if existing_rows is None else _ids(existing_rows)
        columns = _ids(_require(existing, "existing", "what the parents trained on"))
        blocks.append(PairBlock("existing", rows, columns))
    if replay is not None:
        blocks.append(PairBlock("replay", _ids(replay), _ids(replay)))
    return PairPlan(tuple(blocks))


def neighbour_block(ids: Sequence[str], neighbours: Neighbours) -> PairBlock:
    """Return the `self` block of near pairs: (i, j) and (j, i) for each neighbour j of i.

    Raises:
        InputError: the neighbours belong to another number of records.
    """
    from scipy.sparse import csc_matrix

    n = len(ids)
    if len(neighbours.indices) != n:
        raise InputError(f"neighbours of {len(neighbours.indices)} records do not fit {n} records")
    rows, slots = np.nonzero(neighbours.indices >= 0)
    ones = np.ones(len(rows), dtype=np.int8)
    near = csc_matrix((ones, (rows, neighbours.indices[rows, slots])), shape=(n, n))
    both = (near + near.T).tocsc()
    both.sort_indices()
    arrays = both.indptr.astype(np.int64), both.indices.astype(np.int32)
    return PairBlock("self", tuple(ids), tuple(ids), *arrays)


def _ids(frame: pl.DataFrame) -> tuple[str, ...]:
    return tuple(frame["record_id"].to_list())


def _require(value: Any, block: str, what: str) -> Any:
    if value is None:
        raise InputError(
            f"the {block} pairs need {what}, but this version does not have that", field=block
        )
    return value


def write_plan(
    folder: Path,
    plan: PairPlan,
    *,
    pool: pl.DataFrame | None = None,
    neighbours: Neighbours | None = None,
    **others: Any,
) -> Manifest:
    """Write a plan's folder; equal plans give equal bytes, except for the manifest's date.

    The neighbours of the pool are stored with it, and `records.parquet` says which records have
    none and why. The other arguments are fields of the `Manifest`.
    """
    blocks = [
        {
            "name": block.name,
            "form": "dense" if block.dense else "csc",
            "rows": len(block.targets),
            "columns": len(block.demonstrations),
            "pairs": block.pairs,
        }
        for block in plan.blocks
    ]
    with replace_folder(folder) as temporary:
        for block in plan.blocks:
            for role in ("targets", "demonstrations"):
                frame = pl.DataFrame({"record_id": getattr(block, role)}, {"record_id": pl.String})
                write_parquet(temporary / f"{block.name}.{role}.parquet", frame)
            if block.indptr is not None and block.indices is not None:
                np.save(temporary / f"{block.name}.indptr.npy", block.indptr)
                np.save(temporary / f"{block.name}.indices.npy", block.indices)
        write_json(temporary / _BLOCKS, blocks)
        alone = 0
        if neighbours is not None:
            np.save(temporary / "neighbours.npy", neighbours.indices)
            np.save(temporary / "cosine.npy", neighbours.cosine)
            alone = int((neighbours.counts == 0).sum())
            if pool is not None:
                own = pl.Series("neighbours", neighbours.counts, pl.Int32)
                reason = pl.when(own == 0).then(pl.lit(NO_NEIGHBOUR)).alias("reason")
                frame = pool.select("record_id", own, reason)
                write_parquet(temporary / "records.parquet", frame)
        manifest = Manifest(
            kind="plan",
            content_hash=plan_hash(plan, neighbours),
            counts={"pairs": plan.pairs, "without_neighbours": alone},
            details={"blocks": {block["name"]: block for block in blocks}},
            **others,
        )
        manifest.write(temporary)
    return manifest


def plan_hash(plan: PairPlan, neighbours: Neighbours | None = None) -> str:
    """Return the content hash of a plan and its neighbours."""
    parts = []
    for block in plan.blocks:
        arrays = [a.tobytes() for a in (block.indptr, block.indices) if a is not None]
        ids = (digest_text(*block.targets), digest_text(*block.demonstrations))
        parts.append(digest_json([block.name, *ids, digest_bytes(*arrays)]))
    if neighbours is not None:
        parts.append(digest_bytes(neighbours.indices.tobytes(), neighbours.cosine.tobytes()))
    return digest_json(parts)


def read_plan(folder: Path) -> PairPlan:
    """Read the plan in a folder.

    Raises:
        DeliftError: the folder has no plan, or it is damaged.
    """
    try:
        entries = read_json(folder / _BLOCKS)
        return PairPlan(tuple(_read_block(folder, entry["name"]) for entry in entries))
    except (OSError, ValueError, EOFError, KeyError, pl.exceptions.PolarsError) as error:
        why = f"the pair plan {folder.name} cannot be read ({error}); plan it again"
        raise DeliftError(why) from error


def _read_block(folder: Path, name: Any) -> PairBlock:
    files = (folder / f"{name}.{role}.parquet" for role in ("targets", "demonstrations"))
    targets, demonstrations = (_ids(pl.read_parquet(file)) for file in files)
    if not (folder / f"{name}.indptr.npy").exists():
        return PairBlock(name, targets, demonstrations)
    indptr, indices = (np.load(folder / f"{name}.{part}.npy") for part in ("indptr", "indices"))
    return PairBlock(name, targets, demonstrations, indptr, indices)


def read_neighbours(folder: Path) -> Neighbours | None:
    """Read the neighbours that are stored with a plan, or return None if it has none."""
    if not (folder / "neighbours.npy").exists():
        return None
    return Neighbours(np.load(folder / "neighbours.npy"), np.load(folder / "cosine.npy"))
