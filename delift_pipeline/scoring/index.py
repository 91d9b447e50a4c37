"""Where each demonstration's scores lie; made from the shards, so it can always be made again."""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delift_pipeline.scoring.shards import SUFFIX, Shard

SETTLED_NANOSECONDS = 1_000_000_000
_NOTHING = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Place:
    """One demonstration in one shard."""

    shard: Shard
    place: int

    def targets(self) -> np.ndarray:
        """Ascending target ids, int32."""
        return self.shard.targets(self.place)


class ShardIndex:
    """Demonstration id -> where its scores lie, oldest shard first."""

    def __init__(self, folder: Path) -> None:
        """Index a folder of shards, which need not exist yet."""
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self._places: dict[int, list[Place]] = defaultdict(list)
        self._listed = (0, 0)

    def refresh(self) -> None:
        """Take in shards that were added since, and forget all of it if one has gone.

        Raises:
            DeliftError: a shard cannot be read.
        """
        if self._unchanged():
            return
        names = shard_names(self.folder)
        if not self.shards.keys() <= set(names):
            self.shards.clear()
            self._places.clear()
        fresh = [name for name in names if name not in self.shards]
        for name in fresh:
            shard = Shard(self.folder / f"{name}{SUFFIX}")
            self.shards[name] = shard
            for place, demonstration in enumerate(shard.demonstrations.tolist()):
                entries = self._places[demonstration]
                entries.append(Place(shard, place))
                entries.sort(key=lambda entry: entry.shard.name)

    def _unchanged(self) -> bool:
        """Whether the folder is as it was when last listed, judged by its modification time."""
        if not self.folder.is_dir():
            return False
        listed, changed = self._listed
        now, found = time.time_ns(), self.folder.stat().st_mtime_ns
        self._listed = (now, found)
        # Just after a change another one may carry the same time stamp.
        return found == changed and listed - changed > SETTLED_NANOSECONDS

    def places(self, demonstration: int) -> list[Place]:
        """Where a demonstration's scores lie, oldest shard first."""
        return self._places.get(demonstration, [])

    def present(self, demonstration: int) -> np.ndarray:
        """Ascending ids of the targets that are scored after a demonstration, int32."""
        sets = [place.targets() for place in self.places(demonstration)]
        if len(sets) < 2:
            return sets[0] if sets else _NOTHING
        return np.unique(np.concatenate(sets))

    def missing(self, demonstration: int, wanted: np.ndarray) -> np.ndarray:
        """Those of the ascending, distinct target ids `wanted` that are not scored yet, int32."""
        present = self.present(demonstration)
        if not len(present):
            return wanted
        if len(present) == len(wanted) and np.array_equal(present, wanted):
            return _NOTHING
        return np.setdiff1d(wanted, present, assume_unique=True)


def shard_names(folder: Path) -> list[str]:
    """Names of the shards in a folder, oldest first."""
    return sorted(path.stem for path in folder.glob(f"[0-9]*{SUFFIX}"))
