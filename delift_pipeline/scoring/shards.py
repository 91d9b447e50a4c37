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
from dataclasses import dataclass, field
from functools import partial
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
        from safetensors import SafetensorError, safe_open

        self.path, self.name, self._open = path, path.stem, partial(safe_open, path, "np")
        try:
            with self._open() as file:
                self.meta: dict[str, Any] = json.loads(file.metadata()[_META])
                self.demonstrations: np.ndarray = file.get_tensor("demonstrations")
                names = ("set_first", "set_forms", "set_steps")
                self._id_sets = IdSets(*map(file.get_tensor, names))
                own = np.arange(len(self.demonstrations))
                self._sets = file.get_tensor("sets") if "sets" in file.keys() else own  # noqa: SIM118
            ends = np.cumsum(self._id_sets.sizes()[self._sets])
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
            raise DeliftError(
                f"the score shard {path.name} cannot be read ({error}); `delift verify` sets it "
                "aside, and its pairs are scored again"
            ) from error
        self._starts = np.concatenate([[0], ends]).astype(np.int64)

    @property
    def pairs(self) -> int:
        """How many pairs it holds."""
        return int(self._starts[-1])

    def targets(self, place: int) -> np.ndarray:
        """Ascending target ids of the demonstration at `place`, int32."""
        return self._id_sets.unpacked(int(self._sets[place]))

    def scores(self, place: int) -> PairScores:
        """Scores of the demonstration at `place`, in the order of `targets(place)`."""
        return PairScores(*self._read(place, "squared_distance", "sum_logprob"))

    def tokens(self, place: int) -> np.ndarray:
        """Answer tokens of the targets at `place`, int32; baseline shards only."""
        return self._read(place, "tokens")[0]

    def intact(self) -> bool:
        """Whether every byte is as it was written."""
        with self._open() as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return checksum(self.meta, arrays) == self.meta.get("checksum")

    def _read(self, place: int, *names: str) -> list[np.ndarray]:
        start, stop = self._starts[place : place + 2].tolist()
        with self._open() as file:
            return [file.get_slice(name)[start:stop] for name in names]
