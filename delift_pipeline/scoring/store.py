"""The score store: every pair that was ever scored with one fingerprint, and never twice."""

import json
import os
import socket
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_bytes
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import PairScores
from delift_pipeline.scoring.fingerprint import Fingerprint
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.shards import (
    BASELINE,
    SUFFIX,
    Shard,
    ShardDraft,
    ShardIndex,
    shard_names,
    write_shard,
)

ID_BYTES = 16
UNKNOWN = -2
"""Stands for no number; -1 stands for the baseline in the shards."""


class IdTable:
    """Numbers for record_ids, in the order in which they first came.

    The file is the 16 raw bytes of each record_id, end to end; a record's number is its place. What
    a kill leaves of an unfinished record_id is ignored by readers and overwritten by the next
    writer.
    """

    def __init__(self, path: Path) -> None:
        """Open a table; there need not be a file yet."""
        self.path = path
        self._numbers: dict[str, int] = {}

    def numbers(self, record_ids: Sequence[str]) -> np.ndarray:
        """The records' numbers, int32 [records]; `UNKNOWN` where a record has none."""
        self.refresh()
        numbers = (self._numbers.get(record, UNKNOWN) for record in record_ids)
        return np.fromiter(numbers, dtype=np.int32, count=len(record_ids))

    def add(self, record_ids: Sequence[str]) -> np.ndarray:
        """The records' numbers, int32 [records], new ones for those that have none yet.

        Nothing is written where all have one, so a table that cannot be written can be read.
        """
        if UNKNOWN not in (numbers := self.numbers(record_ids)):
            return numbers
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.refresh()
            if fresh := dict.fromkeys(r for r in record_ids if r not in self._numbers):
                with self.path.open("r+b" if self.path.exists() else "xb") as handle:
                    handle.seek(len(self._numbers) * ID_BYTES)
                    handle.write(b"".join(bytes.fromhex(record) for record in fresh))
                    handle.truncate()
                    handle.flush()
                    os.fsync(handle.fileno())
        return self.numbers(record_ids)

    def names(self) -> list[str]:
        """Every record_id, in the order of the numbers."""
        self.refresh()
        return list(self._numbers)

    def refresh(self) -> None:
        """Read what others have appended."""
        known = len(self._numbers) * ID_BYTES
        if not self.path.is_file() or self.path.stat().st_size < known + ID_BYTES:
            return
        with self.path.open("rb") as handle:
            handle.seek(known)
            raw = handle.read()
        for start in range(0, len(raw) - ID_BYTES + 1, ID_BYTES):
            self._numbers[raw[start : start + ID_BYTES].hex()] = len(self._numbers)


class Baseline(NamedTuple):
    """Scores of targets without a demonstration, as `PairScores`; `tokens` is 0 where absent."""

    squared_distance: np.ndarray
    sum_logprob: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class BadShard:
    """A shard that is not as it was written, and why."""

    name: str
    reason: str


class ScoreStore:
    """The scores of one fingerprint, under one folder.

    manifest.json     the fingerprint's parts
    records.ids       record_id -> id (`IdTable`)
    shards/           immutable files of scores (`shards`)
    leases/           who is scoring what (`Leases`)
    aside/            shards found damaged

    A score is kept by its target and one demonstration, or none. Those after several demonstrations
    come from an engine's jobs and are not kept.
    A pair that stands in several shards keeps the oldest one's value.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store; the folder need not exist yet."""
        self.folder = folder
        self.ids, self.index = IdTable(folder / "records.ids"), ShardIndex(folder / "shards")
        self._last: tuple[Sequence[str], np.ndarray] | None = None

    def ensure_manifest(self, fingerprint: Fingerprint) -> None:
        """Write the manifest of a new store, or check that an old one is of this fingerprint.

        Raises:
            DeliftError: the store holds scores of another fingerprint.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = read_manifest(self.folder)
        digest, details = fingerprint.digest, fingerprint.parts
        if stored is None:
            new = Manifest(kind="scores", content_hash=digest, fingerprint=digest, details=details)
            new.write(self.folder)
        elif stored.fingerprint != digest:
            raise DeliftError(
                f"{self.folder} holds scores of {stored.fingerprint}, not of {digest}"
            )

    def refresh(self) -> None:
        """See what other writers have added."""
        self._last = None
        self.ids.refresh()
        self.index.refresh()

    @property
    def shards(self) -> list[Shard]:
        """Every shard, oldest first."""
        self.index.refresh()
        return [self.index.shards[name] for name in sorted(self.index.shards)]

    @property
    def pair_count(self) -> int:
        """Pairs in all shards, the baseline's not counted."""
        return sum(s.pairs for s in self.shards if BASELINE not in s.demonstrations)

    def write(self, draft: ShardDraft, settings: dict[str, Any]) -> None:
        """Make a draft a shard."""
        last = (shard_names(self.index.folder) or ["-1"])[-1]
        name = f"{int(last[:8]) + 1:08d}-{uuid.uuid4().hex[:8]}"
        write_shard(self.index.folder / f"{name}{SUFFIX}", draft, settings)

    def column(self, demonstration: str, targets: Sequence[str]) -> PairScores:
        """Scores of `targets` after `demonstration`."""
        numbers = self._numbers_of(targets)
        # The unknown have a number, too, which is in no shard.
        return self._read_scores(int(self.ids.numbers([demonstration])[0]), numbers)

    def read_block(self, demonstrations: Sequence[str], targets: Sequence[str]) -> PairScores:
        """A dense block: both arrays float32 [targets, demonstrations], column-major."""
        columns = [self.column(demonstration, targets) for demonstration in demonstrations]
        arrays = np.asarray(columns, dtype=np.float32).reshape(len(columns), 2, len(targets))
        return PairScores(*(np.ascontiguousarray(arrays[:, part]).T for part in range(2)))

    def baseline(self, targets: Sequence[str]) -> Baseline:
        """Scores of `targets` without a demonstration, and their answers' token counts."""
        numbers = self._numbers_of(targets)
        self.index.refresh()
        tokens = np.zeros(len(numbers), dtype=np.int32)
        for shard, place in self.index.places(BASELINE):
            places, inside = _match(shard.targets(place), numbers)
            tokens[inside] = shard.tokens(place)[places]
        return Baseline(*self._read_scores(BASELINE, numbers), tokens)

    def digest(self, block: PairBlock) -> str:
        """Digest of a block's pairs and their scores: equal scores give equal digests."""
        parts: list[bytes] = []
        numbers = self._numbers_of(block.targets)
        names = digest_bytes(*(t.encode() for t in block.targets))
        for place, number in enumerate(self.ids.numbers(block.demonstrations)):
            rows = block.targets_of(place)
            scores = self._read_scores(int(number), numbers[rows])
            raw = digest_bytes(rows.tobytes(), *(values.tobytes() for values in scores))
            parts += [block.demonstrations[place].encode(), raw.encode()]
        return digest_bytes(names.encode(), *parts)

    def _read_scores(self, demonstration: int, numbers: np.ndarray) -> PairScores:
        result = PairScores(*np.full((2, len(numbers)), np.nan, dtype=np.float32))
        # The oldest shard is read last, so that its values stand.
        for shard, place in reversed(self.index.places(demonstration)):
            places, inside = _match(shard.targets(place), numbers)
            for values, scores in zip(result, shard.scores(place), strict=True):
                values[inside] = scores[places]
        return result

    def _numbers_of(self, targets: Sequence[str]) -> np.ndarray:
        # A kernel is read column by column with one and the same sequence of targets.
        if self._last is None or self._last[0] is not targets or isinstance(targets, list):
            self.refresh()
            self._last = (targets, self.ids.numbers(targets))
        return self._last[1]

    def missing(self, plan: PairPlan) -> PairPlan:
        """The pairs of a plan that are not scored yet; blocks with none are left out."""
        self.refresh()
        blocks = (self._missing_block(block) for block in plan.blocks)
        return PairPlan(tuple(block for block in blocks if block.pairs))

    def _missing_block(self, block: PairBlock) -> PairBlock:
        targets, rows = self.ids.numbers(block.targets), dict[str, np.ndarray]()
        for place, number in enumerate(self.ids.numbers(block.demonstrations).tolist()):
            planned = block.targets_of(place)
            missing = planned[~np.isin(targets[planned], self.index.present(number))]
            if len(missing):
                rows[block.demonstrations[place]] = missing
        if block.dense and all(len(missing) == len(targets) for missing in rows.values()):
            return PairBlock(block.name, block.targets, tuple(rows))
        indptr = np.cumsum([0, *map(len, rows.values())], dtype=np.int64)
        indices = np.concatenate([np.empty(0, np.int32), *rows.values()], dtype=np.int32)
        return PairBlock(block.name, block.targets, tuple(rows), indptr, indices)

    def verify(self) -> list[BadShard]:
        """Read every byte of every shard; the ones that are not as they were written."""
        bad = []
        for name in shard_names(self.index.folder):
            try:
                if not Shard(self.index.folder / f"{name}{SUFFIX}").is_intact():
                    bad.append(BadShard(name, "its checksum does not match its contents"))
            except (DeliftError, ValueError, KeyError) as error:
                bad.append(BadShard(name, str(error)))
        return bad

    def set_aside(self, name: str) -> Path:
        """Move a shard out of the store, so that its pairs are missing and are scored again."""
        aside = self.folder / "aside" / f"{name}{SUFFIX}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        moved = (self.index.folder / f"{name}{SUFFIX}").rename(aside)
        self.index = ShardIndex(self.index.folder)
        return moved


def _match(present: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in the ascending `present` of the `numbers` that it has, and which those are."""
    if len(present) == len(numbers) and np.array_equal(present, numbers):
        everything = np.arange(len(numbers))
        return everything, everything
    places = np.minimum(np.searchsorted(present, numbers), max(len(present) - 1, 0))
    inside = np.flatnonzero(present[places] == numbers) if len(present) else places[:0]
    return places[inside], inside


class Leases:
    """Who is scoring which demonstrations, so that several writers share the work.

    A lease is a locked file. The system unlocks it when its holder ends, in whatever way it ends.
    These are the leases of one writer; the context manager returns them all at the end.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare to take leases, whose files lie in `folder`."""
        self.folder = folder
        self._locks: dict[str, FileLock] = {}

    def __enter__(self) -> "Leases":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        # Files of writers that died can be claimed, and are removed with the own ones.
        for path in self.folder.glob("*.lease"):
            self.claim(path.stem)
        self.release()

    def claim(self, key: str) -> bool:
        """Take a lease; False where another writer holds it."""
        if key in self._locks:
            return True
        path = self.folder / f"{key}.lease"
        try:
            (lock := FileLock(path)).acquire(blocking=False)
        except Timeout:
            return False
        # For people who look: the lock alone counts.
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._locks[key] = lock
        return True

    def release(self, keep: str | None = None) -> None:
        """Give back every lease but `keep`."""
        for key in self._locks.keys() - {keep}:
            # Removed before it is unlocked: afterwards the file may be another writer's.
            (self.folder / f"{key}.lease").unlink(missing_ok=True)
            self._locks.pop(key).release()


class PairRequest:
    """The pairs a plan wants, without those of unscorable records.

    A demonstration that stands in several blocks is wanted once, with the union of its targets.

    Attributes:
        rows: The row of each id in the encoded records, int64; -1 where it is no scorable record's.
        left_out: Pairs of the plan that involve an unscorable record, counted block by block.
        pairs: Pairs wanted; one that stands in several blocks counts once.
    """

    def __init__(
        self,
        plan: PairPlan,
        records: EncodedRecords,
        store: ScoreStore,
        baseline_ids: Sequence[str] = (),
    ) -> None:
        """Give every scorable record of the plan an id.

        The records `baseline_ids` are wanted without a demonstration, under the id `BASELINE`.

        Raises:
            DeliftError: the plan names a record that was not encoded.
        """
        mentioned = list(plan.records())
        known = records.rows.keys() | records.unscorable
        if unknown := [record for record in mentioned if record not in known]:
            raise DeliftError(
                f"the plan names {len(unknown):,} records that were not given (first: {unknown[0]})"
            )
        scorable = [record for record in (*mentioned, *baseline_ids) if record in records.rows]
        numbers = store.ids.add(scorable)
        self.store = store
        self.rows = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
        self.rows[numbers] = [records.rows[record] for record in scorable]
        number = dict(zip(scorable, numbers.tolist(), strict=True))
        # The targets' ids of each demonstration in each block; a dense block has them once.
        self._targets: dict[int, list[np.ndarray]] = defaultdict(list)
        self.left_out = plan.pairs + len(baseline_ids)
        for block in plan.blocks:
            targets = np.asarray([number.get(t, -1) for t in block.targets], dtype=np.int32)
            everything = np.unique(targets[targets >= 0])
            for place, demonstration in enumerate(block.demonstrations):
                if demonstration in number:
                    scored = everything
                    if not block.dense:
                        scored = targets[block.targets_of(place)]
                        scored = np.unique(scored[scored >= 0])
                    self._targets[number[demonstration]].append(scored)
                    self.left_out -= len(scored)
        if ids := [number[record] for record in baseline_ids if record in number]:
            self._targets[BASELINE].append(np.unique(np.asarray(ids, dtype=np.int32)))
            self.left_out -= len(ids)
        self.pairs = sum(len(self.targets(number)) for number in self._targets)

    def targets(self, demonstration: int) -> np.ndarray:
        """Ascending ids of the targets wanted after a demonstration, int32."""
        sets = self._targets[demonstration]
        return sets[0] if len(sets) == 1 else np.unique(np.concatenate(sets))

    def missing(self, demonstrations: Sequence[int] | None = None) -> dict[int, int]:
        """Demonstration id -> targets that are not scored yet; those with none are left out."""
        numbers = sorted(self._targets) if demonstrations is None else demonstrations
        missing = self.store.index.missing
        counts = {number: len(missing(number, self.targets(number))) for number in numbers}
        return {number: count for number, count in counts.items() if count}
