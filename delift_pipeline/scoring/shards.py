"""Shards: immutable files of scores, demonstration after demonstration.

A shard is a safetensors file:

    demonstrations      int32 [d]      ids; -1 stands for no demonstration (the baseline)
    sets                unsigned [d]   which target set each demonstration has; left out where each
                                       has its own, in order
    set_first, set_forms, set_steps    the target sets, each stored once (`idsets`)
    squared_distance    float32 [pairs]
    sum_logprob         float32 [pairs]
    tokens              int32 [pairs]  answer tokens of the targets; baseline shards only

The pairs lie demonstration after demonstration, targets in ascending order of id. The header's
metadata holds, as JSON, the engine's settings, the batches halved for memory, the seconds of work
and a checksum over everything else.
"""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from delift_pipeline.errors import DeliftError
from delift_pipeline.scoring.engine import PairScores
from delift_pipeline.scoring.idsets import IdSets, smallest
from delift_pipeline.storage.atomic import replacing
from delift_pipeline.storage.hashing import digest_bytes

BASELINE = -1
SUFFIX = ".safetensors"
_META = "delift"
_DTYPES = {
    "F32": np.float32,
    "I32": np.int32,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
}


@dataclass
class ShardDraft:
    """Scores that are to become a shard.

    Attributes:
        demonstrations: Ids.
        targets: Ascending target ids of each demonstration.
        scores: Their scores, in the same order.
        tokens: Their answer tokens; for the baseline only.
        seconds: Work in it.
        halved: Batches halved for memory.
    """

    demonstrations: list[int] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    scores: list[PairScores] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0
    halved: int = 0

    def add(
        self,
        demonstration: int,
        targets: np.ndarray,
        scores: PairScores,
        tokens: np.ndarray | None = None,
    ) -> None:
        """Add a demonstration's scores; `targets` ascending."""
        self.demonstrations.append(demonstration)
        self.targets.append(targets)
        self.scores.append(scores)
        if tokens is not None:
            self.tokens.append(tokens)

    @property
    def pairs(self) -> int:
        """How many pairs it holds."""
        return sum(len(targets) for targets in self.targets)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of the file."""
        numbers: dict[bytes, int] = {}
        places = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in self.targets]
        distinct = [np.frombuffer(raw, dtype=np.int32) for raw in numbers]
        sets = IdSets.packed(distinct)
        arrays = {
            "demonstrations": np.asarray(self.demonstrations, dtype=np.int32),
            "set_first": sets.first,
            "set_forms": sets.forms,
            "set_steps": sets.steps,
            "squared_distance": np.concatenate([s.squared_distance for s in self.scores]),
            "sum_logprob": np.concatenate([s.sum_logprob for s in self.scores]),
        }
        if len(distinct) < len(places):
            arrays["sets"] = smallest(np.asarray(places))
        if self.tokens:
            arrays["tokens"] = np.concatenate(self.tokens).astype(np.int32)
        return arrays


def write_shard(path: Path, draft: ShardDraft, settings: dict[str, Any]) -> None:
    """Write a shard: a temporary name, fsync, rename."""
    from safetensors.numpy import save_file

    arrays = draft.tensors()
    meta = {**settings, "halved": draft.halved, "seconds": round(draft.seconds, 3)}
    meta["checksum"] = checksum(meta, arrays)
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={_META: json.dumps(meta, sort_keys=True)})


def checksum(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """BLAKE2b-128 over the metadata (without the checksum) and every array."""
    said = json.dumps({k: v for k, v in meta.items() if k != "checksum"}, sort_keys=True)
    parts = [said.encode()]
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        parts += [name.encode(), f"{array.dtype.name}{array.shape}".encode(), array.tobytes()]
    return digest_bytes(*parts)


class Shard:
    """One shard, read lazily: the layout stays in memory, values are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Read a shard's header and layout.

        Raises:
            DeliftError: it cannot be read.
        """
        self.path, self.name = path, path.stem
        try:
            with path.open("rb") as handle:
                self._read_layout(handle)
        except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            raise DeliftError(
                f"the score shard {path.name} cannot be read ({error}); `delift verify` sets it "
                "aside, and its pairs are scored again"
            ) from error

    def _read_layout(self, handle: Any) -> None:
        (size,) = struct.unpack("<Q", handle.read(8))
        if size > self.path.stat().st_size:
            raise ValueError("its header is longer than the file")
        self._base = 8 + size
        self._entries: dict[str, Any] = json.loads(handle.read(size))
        self.meta: dict[str, Any] = json.loads(self._entries.pop("__metadata__")[_META])
        self.demonstrations = self._array(handle, "demonstrations")
        names = ("set_first", "set_forms", "set_steps")
        self.id_sets = IdSets(*(self._array(handle, name) for name in names))
        own = np.arange(len(self.demonstrations))
        self.sets = self._array(handle, "sets") if "sets" in self._entries else own
        ends = np.cumsum(self.id_sets.sizes()[self.sets])
        self.starts = np.concatenate([[0], ends]).astype(np.int64)

    @property
    def pairs(self) -> int:
        """How many pairs it holds."""
        return int(self.starts[-1])

    def targets(self, place: int) -> np.ndarray:
        """Ascending target ids of the demonstration at `place`, int32."""
        return self.id_sets.unpacked(int(self.sets[place]))

    def scores(self, place: int) -> PairScores:
        """Scores of the demonstration at `place`, in the order of `targets(place)`."""
        start, stop = int(self.starts[place]), int(self.starts[place + 1])
        with self.path.open("rb") as handle:
            squared = self._array(handle, "squared_distance", start, stop)
            return PairScores(squared, self._array(handle, "sum_logprob", start, stop))

    def tokens(self, place: int) -> np.ndarray:
        """Answer tokens of the targets at `place`, int32; baseline shards only."""
        start, stop = int(self.starts[place]), int(self.starts[place + 1])
        with self.path.open("rb") as handle:
            return self._array(handle, "tokens", start, stop)

    def intact(self) -> bool:
        """Whether every byte is as it was written."""
        with self.path.open("rb") as handle:
            arrays = {name: self._array(handle, name) for name in self._entries}
        return checksum(self.meta, arrays) == self.meta.get("checksum")

    def _array(self, handle: Any, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        entry = self._entries[name]
        kind = np.dtype(_DTYPES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        length = (end - begin) // kind.itemsize
        last = length if stop is None else stop
        handle.seek(self._base + begin + start * kind.itemsize)
        found = np.frombuffer(handle.read((last - start) * kind.itemsize), dtype=kind)
        if len(found) != last - start or [length] != entry["shape"]:
            raise ValueError(f"its array {name} is cut off")
        return found
