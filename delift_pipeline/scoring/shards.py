"""Shards: immutable files of scores.

A shard is a safetensors file:

    demonstrations      int32 [d]      record numbers, or a number below 0 (see `BASELINE`)
    sets                unsigned [d]   the target set of each demonstration; absent if each has its
                                       own, in order
    set_first, set_forms, set_steps    the different target sets (`IdSets`)
    squared_distance    float32 [pairs]
    sum_logprob         float32 [pairs]
    tokens              int32 [pairs]  answer tokens of the targets; only without demonstrations

Pairs are sorted by demonstration in the order of `demonstrations`, then by target number. The
header's metadata has, as JSON, the engine's settings, how many batches were halved for lack of
memory, the seconds of work and a checksum over everything else.

`ShardIndex` finds the scores of a demonstration. It is built from the shards alone.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from delift_pipeline.core.atomic import replace_file
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_bytes
from delift_pipeline.scoring.engine import PairScores


def to_smallest_type(numbers: np.ndarray) -> np.ndarray:
    """Cast non-negative numbers below 2^32 to the smallest unsigned type that holds them all."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


@dataclass(frozen=True)
class IdSets:
    """Sets of record numbers in few bytes.

    A set becomes a strictly ascending sequence: its numbers, or its runs of consecutive numbers as
    start, stop, start, stop, whichever is shorter. The sequence is stored as its first number and
    the differences between neighbours.

    Attributes:
        first: First number of each sequence, int32 [sets].
        forms: Twice the length of each sequence, plus 1 if it has runs, unsigned [sets].
        steps: The differences of all sequences, concatenated, unsigned.
    """

    first: np.ndarray
    forms: np.ndarray
    steps: np.ndarray

    @classmethod
    def pack(cls, sets: list[np.ndarray]) -> "IdSets":
        """Pack sets; each is a strictly ascending, non-empty int array."""
        sequences = [_shortest_form(ids.astype(np.int64)) for ids in sets]
        first = np.asarray([sequence[0] for sequence, _ in sequences], dtype=np.int32)
        forms = np.asarray([2 * len(sequence) + runs for sequence, runs in sequences])
        steps = [np.empty(0, dtype=np.int64), *(np.diff(sequence) for sequence, _ in sequences)]
        return cls(first, to_smallest_type(forms), to_smallest_type(np.concatenate(steps)))

    def unpack(self, place: int) -> np.ndarray:
        """Return the numbers of the set at `place`, ascending, int32."""
        begin, end = self._ends[place : place + 2]
        steps = self.steps[begin:end].astype(np.int64)
        sequence = np.concatenate([[0], np.cumsum(steps)]) + int(self.first[place])
        if not int(self.forms[place]) & 1:
            return sequence.astype(np.int32)
        stretches = [np.arange(a, b, dtype=np.int32) for a, b in sequence.reshape(-1, 2)]
        return np.concatenate(stretches)

    def sizes(self) -> np.ndarray:
        """Return how many numbers each set has, int64 [sets]."""
        counts = (self.forms >> 1).astype(np.int64)
        for place in np.flatnonzero(self.forms & 1).tolist():
            counts[place] = len(self.unpack(place))
        return counts

    @cached_property
    def _ends(self) -> np.ndarray:
        lengths = (self.forms >> 1).astype(np.int64)
        return np.concatenate([[0], np.cumsum(lengths - 1)])


def _shortest_form(ids: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the sequence that stands for a set, and whether it has runs (`IdSets`)."""
    breaks = np.flatnonzero(np.diff(ids) > 1)
    if 2 * (len(breaks) + 1) >= len(ids):
        return ids, False
    starts = np.concatenate([ids[:1], ids[breaks + 1]])
    stops = np.concatenate([ids[breaks], ids[-1:]]) + 1
    return np.stack([starts, stops], axis=1).ravel(), True


# Numbers below 0 stand for no demonstration. They are never in one shard with demonstrations, and
# their scores are not pairs. The number -2 is not used, because it is `store.UNKNOWN`.
BASELINE = -1
"""The answer after its prompt."""
PROMPTED_ANSWER = -3
"""The same without the token that ends the answer (`engine.without_end`)."""
UNPROMPTED_ANSWER = -4
"""The answer after an empty prompt, also without that token."""
SUFFIX = ".safetensors"
_META = "delift"


@dataclass
class ShardDraft:
    """Scores that will become a shard, with the seconds of work and the count of halved batches."""

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
        """Add a demonstration's scores; `targets` ascend. Only numbers below 0 have `tokens`."""
        self.demonstrations.append(demonstration)
        self.targets.append(targets)
        self.scores.append(scores)
        if tokens is not None:
            self.tokens.append(tokens)

    @property
    def pairs(self) -> int:
        """The number of pairs, or of answers; one pass scores `BASELINE` and `PROMPTED_ANSWER`."""
        scored = zip(self.demonstrations, self.targets, strict=True)
        return sum(len(targets) for number, targets in scored if number != PROMPTED_ANSWER)


def write_shard(path: Path, draft: ShardDraft, settings: dict[str, Any]) -> None:
    """Write a shard under a temporary name, sync it to disk, and rename it."""
    from safetensors.numpy import save_file

    numbers: dict[bytes, int] = {}
    places = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in draft.targets]
    sets = IdSets.pack([np.frombuffer(raw, dtype=np.int32) for raw in numbers])
    squared, logprob = map(np.concatenate, zip(*draft.scores, strict=True))
    arrays = {
        "demonstrations": np.asarray(draft.demonstrations, dtype=np.int32),
        "set_first": sets.first,
        "set_forms": sets.forms,
        "set_steps": sets.steps,
        "squared_distance": squared,
        "sum_logprob": logprob,
    }
    if len(numbers) < len(places):
        arrays["sets"] = to_smallest_type(np.asarray(places))
    if draft.tokens:
        arrays["tokens"] = np.concatenate(draft.tokens).astype(np.int32)
    meta = {**settings, "halved": draft.halved, "seconds": round(draft.seconds, 3)}
    meta["checksum"] = checksum(meta, arrays)
    with replace_file(path) as temporary:
        save_file(arrays, temporary, metadata={_META: json.dumps(meta, sort_keys=True)})


def checksum(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Return the BLAKE2b-128 of the metadata (without the checksum) and every array."""
    text = json.dumps({k: v for k, v in meta.items() if k != "checksum"}, sort_keys=True)
    parts = [text.encode()]
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        parts += [name.encode(), f"{array.dtype.name}{array.shape}".encode(), array.tobytes()]
    return digest_bytes(*parts)


class Shard:
    """A shard on disk. Its layout is in memory; its scores are read when they are needed."""

    def __init__(self, path: Path) -> None:
        """Read a shard's header and layout.

        Raises:
            DeliftError: the file cannot be read.
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
                f"the score shard {path.name} cannot be read ({error}); run `delift verify`, which "
                "moves it aside, so its pairs are scored again"
            ) from error
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self.pairs = int(self._starts[-1])

    @property
    def has_pairs(self) -> bool:
        """Whether it has pairs, and not answers without a demonstration."""
        return bool((self.demonstrations >= 0).all())

    def targets(self, place: int) -> np.ndarray:
        """Return the target numbers of the demonstration at `place`, ascending, int32."""
        return self._id_sets.unpack(int(self._sets[place]))

    def scores(self, place: int) -> PairScores:
        """Read the scores of the demonstration at `place`, in the order of `targets(place)`."""
        return PairScores(*self._read(place, "squared_distance", "sum_logprob"))

    def tokens(self, place: int) -> np.ndarray:
        """Read the targets' answer token counts at `place`, int32; only without demonstrations."""
        return self._read(place, "tokens")[0]

    def is_intact(self) -> bool:
        """Whether the contents still match the checksum."""
        with self._open() as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return checksum(self.meta, arrays) == self.meta.get("checksum")

    def _read(self, place: int, *names: str) -> list[np.ndarray]:
        start, stop = self._starts[place : place + 2].tolist()
        with self._open() as file:
            return [file.get_slice(name)[start:stop] for name in names]


TIMESTAMP_NANOSECONDS = 1_000_000_000
"""The coarsest time stamps that we expect of a file system."""


class ShardIndex:
    """The index: demonstration number -> shards with its scores, oldest first."""

    def __init__(self, folder: Path) -> None:
        """Prepare to index a folder of shards, which need not exist yet; see `refresh`."""
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self._places: dict[int, list[tuple[Shard, int]]] = defaultdict(list)
        self._last_listing = (0, 0)

    def refresh(self) -> None:
        """Read shards that were added since; if one was removed, read all of them again.

        Raises:
            DeliftError: a shard cannot be read.
        """
        if self.folder.is_dir():
            listed, changed = self._last_listing
            modified = self.folder.stat().st_mtime_ns
            self._last_listing = (time.time_ns(), modified)
            # Two changes shortly after one another may have the same time stamp.
            if modified == changed and listed - changed > TIMESTAMP_NANOSECONDS:
                return
        names = shard_names(self.folder)
        if not self.shards.keys() <= set(names):
            self.shards.clear()
            self._places.clear()
        for name in [name for name in names if name not in self.shards]:
            shard = self.shards[name] = Shard(self.folder / f"{name}{SUFFIX}")
            for place, demonstration in enumerate(shard.demonstrations.tolist()):
                entries = self._places[demonstration]
                entries.append((shard, place))
                entries.sort(key=lambda entry: entry[0].name)

    def places(self, demonstration: int) -> list[tuple[Shard, int]]:
        """Return the shards with a demonstration's scores and its places there, oldest first."""
        return self._places.get(demonstration, [])

    def present(self, demonstration: int) -> np.ndarray:
        """Return the targets that are scored after a demonstration: ascending numbers, int32."""
        sets = [shard.targets(place) for shard, place in self.places(demonstration)]
        if len(sets) == 1:
            return sets[0]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int32), *sets]))

    def missing(self, demonstration: int, targets: np.ndarray) -> np.ndarray:
        """Return those of `targets` (ascending numbers) that are not scored yet, int32."""
        present = self.present(demonstration)
        if not len(present):
            return targets
        if np.array_equal(present, targets):
            return targets[:0]
        return np.setdiff1d(targets, present, assume_unique=True)


def shard_names(folder: Path) -> list[str]:
    """List the shards in a folder, oldest first."""
    return sorted(path.stem for path in folder.glob(f"[0-9]*{SUFFIX}"))
