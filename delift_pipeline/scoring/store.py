"""The score store: all pairs that were scored with one fingerprint, each once."""

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
    PROMPTED_ANSWER,
    SUFFIX,
    UNPROMPTED_ANSWER,
    Shard,
    ShardDraft,
    ShardIndex,
    shard_names,
    write_shard,
)

ID_BYTES = 16
UNKNOWN = -2
"""The number of a record without a number; no shard has it."""


class IdTable:
    """A file that numbers record_ids in the order in which they were added.

    It has the 16 raw bytes of each record_id, end to end; a record's number is its place. If a
    writer is killed inside a record_id, readers ignore that part and the next writer overwrites it.
    """

    def __init__(self, path: Path) -> None:
        """Prepare to read a table; its file need not exist yet."""
        self.path = path
        self._numbers: dict[str, int] = {}

    def numbers(self, record_ids: Sequence[str]) -> np.ndarray:
        """Return the records' numbers, int32 [records]; `UNKNOWN` where a record has none."""
        self.refresh()
        numbers = (self._numbers.get(record, UNKNOWN) for record in record_ids)
        return np.fromiter(numbers, dtype=np.int32, count=len(record_ids))

    def add(self, record_ids: Sequence[str]) -> np.ndarray:
        """Number the records that have no number yet, and return all numbers, int32 [records].

        If all have one, nothing is written: a store on a read-only disk stays usable.
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
        """Return all record_ids in the order of their numbers."""
        self.refresh()
        return list(self._numbers)

    def refresh(self) -> None:
        """Read what other writers have appended."""
        known = len(self._numbers) * ID_BYTES
        if not self.path.is_file() or self.path.stat().st_size < known + ID_BYTES:
            return
        with self.path.open("rb") as handle:
            handle.seek(known)
            raw = handle.read()
        for start in range(0, len(raw) - ID_BYTES + 1, ID_BYTES):
            self._numbers[raw[start : start + ID_BYTES].hex()] = len(self._numbers)


class Baseline(NamedTuple):
    """Scores without a demonstration, as in `PairScores`; `tokens` is 0 where there are none."""

    squared_distance: np.ndarray
    sum_logprob: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class BadShard:
    """The name of a damaged shard, and what is wrong with it."""

    name: str
    reason: str


class ScoreStore:
    """The scores of one fingerprint, in one folder.

    manifest.json     the fingerprint's parts
    records.ids       record_id -> number (`IdTable`)
    shards/           immutable files of scores (`shards`)
    leases/           who is scoring what (`Leases`)
    aside/            damaged shards

    A score has a target and one demonstration, or none. Scores after several demonstrations are not
    stored. If several shards have the same pair, the value of the oldest counts.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare to use a store; its folder need not exist yet."""
        self.folder = folder
        self.ids, self.index = IdTable(folder / "records.ids"), ShardIndex(folder / "shards")
        self._last: tuple[Sequence[str], np.ndarray] | None = None

    def ensure_manifest(self, fingerprint: Fingerprint) -> None:
        """Write the manifest of a new store, or check the fingerprint of an existing one.

        Raises:
            DeliftError: the store has scores of another fingerprint.
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
        """Read what other writers have added."""
        self._last = None
        self.ids.refresh()
        self.index.refresh()

    @property
    def shards(self) -> list[Shard]:
        """All shards, oldest first."""
        self.index.refresh()
        return [self.index.shards[name] for name in sorted(self.index.shards)]

    @property
    def pair_count(self) -> int:
        """The number of pairs in all shards, without scores of answers alone."""
        return sum(shard.pairs for shard in self.shards if shard.has_pairs)

    def write(self, draft: ShardDraft, settings: dict[str, Any]) -> None:
        """Write a draft as a new shard."""
        last = (shard_names(self.index.folder) or ["-1"])[-1]
        name = f"{int(last[:8]) + 1:08d}-{uuid.uuid4().hex[:8]}"
        write_shard(self.index.folder / f"{name}{SUFFIX}", draft, settings)

    def column(self, demonstration: str, targets: Sequence[str]) -> PairScores:
        """Read the scores of `targets` after `demonstration`."""
        numbers = self._numbers_of(targets)
        # No shard has the number `UNKNOWN`, so unknown records get NaN.
        return self._read_scores(int(self.ids.numbers([demonstration])[0]), numbers)

    def read_block(self, demonstrations: Sequence[str], targets: Sequence[str]) -> PairScores:
        """Read a dense block: both arrays float32 [targets, demonstrations], column-major."""
        columns = [self.column(demonstration, targets) for demonstration in demonstrations]
        arrays = np.asarray(columns, dtype=np.float32).reshape(len(columns), 2, len(targets))
        return PairScores(*(np.ascontiguousarray(arrays[:, part]).T for part in range(2)))

    def baseline(self, targets: Sequence[str]) -> Baseline:
        """Read the scores of `targets` without a demonstration, and their answer token counts."""
        numbers = self._numbers_of(targets)
        self.index.refresh()
        tokens = np.zeros(len(numbers), dtype=np.int32)
        for shard, place in self.index.places(BASELINE):
            places, inside = _match(shard.targets(place), numbers)
            tokens[inside] = shard.tokens(place)[places]
        return Baseline(*self._read_scores(BASELINE, numbers), tokens)

    def answer_sums(self, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read log p of answers after their prompt and after an empty one, the end token left out.

        Both are sums over an answer's tokens in nats, float32 [targets], and NaN where missing.
        """
        numbers = self._numbers_of(targets)
        prompted = self._read_scores(PROMPTED_ANSWER, numbers).sum_logprob
        return prompted, self._read_scores(UNPROMPTED_ANSWER, numbers).sum_logprob

    def digest(self, block: PairBlock) -> str:
        """Return a digest of a block's pairs and scores: equal scores give equal digests."""
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
        # The oldest shard is read last, so its values win.
        for shard, place in reversed(self.index.places(demonstration)):
            places, inside = _match(shard.targets(place), numbers)
            for values, scores in zip(result, shard.scores(place), strict=True):
                values[inside] = scores[places]
        return result

    def _numbers_of(self, targets: Sequence[str]) -> np.ndarray:
        # A kernel reads many columns with the same targets, so their numbers are remembered.
        if self._last is None or self._last[0] is not targets or isinstance(targets, list):
            self.refresh()
            self._last = (targets, self.ids.numbers(targets))
        return self._last[1]

    def missing(self, plan: PairPlan) -> PairPlan:
        """Return the pairs of a plan that are not scored yet; complete blocks are left out."""
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
        """Read every byte of every shard and return the damaged ones."""
        bad = []
        for name in shard_names(self.index.folder):
            try:
                if not Shard(self.index.folder / f"{name}{SUFFIX}").is_intact():
                    bad.append(BadShard(name, "its checksum does not match its contents"))
            except (DeliftError, ValueError, KeyError) as error:
                bad.append(BadShard(name, str(error)))
        return bad

    def set_aside(self, name: str) -> Path:
        """Move a shard out of the store; then its pairs are missing and will be scored again."""
        aside = self.folder / "aside" / f"{name}{SUFFIX}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        moved = (self.index.folder / f"{name}{SUFFIX}").rename(aside)
        self.index = ShardIndex(self.index.folder)
        return moved


def _match(present: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find `numbers` in `present` (ascending): their places there, and which were found."""
    if len(present) == len(numbers) and np.array_equal(present, numbers):
        everything = np.arange(len(numbers))
        return everything, everything
    places = np.minimum(np.searchsorted(present, numbers), max(len(present) - 1, 0))
    inside = np.flatnonzero(present[places] == numbers) if len(present) else places[:0]
    return places[inside], inside


class Leases:
    """The leases of one writer. Writers lease demonstrations, so that they can share the work.

    A lease is a locked file. The system unlocks it when its owner ends, also after a kill. The
    context manager releases all leases at its end.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare to take leases; their files are in `folder`."""
        self.folder = folder
        self._locks: dict[str, FileLock] = {}

    def __enter__(self) -> "Leases":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        # Leases of writers that died can be claimed, so their files are removed here, too.
        for path in self.folder.glob("*.lease"):
            self.claim(path.stem)
        self.release()

    def claim(self, key: str) -> bool:
        """Take a lease, or return False if another writer has it."""
        if key in self._locks:
            return True
        path = self.folder / f"{key}.lease"
        try:
            (lock := FileLock(path)).acquire(blocking=False)
        except Timeout:
            return False
        # The content only tells people who scores; the lock is what counts.
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._locks[key] = lock
        return True

    def release(self, keep: str | None = None) -> None:
        """Release every lease but `keep`."""
        for key in self._locks.keys() - {keep}:
            # Remove the file before its lock is released: then it may be another writer's.
            (self.folder / f"{key}.lease").unlink(missing_ok=True)
            self._locks.pop(key).release()


class PairRequest:
    """A request to score the pairs of a plan, without those of unscorable records.

    A demonstration in several blocks appears once, with the union of its targets.

    Attributes:
        rows: Record number -> row in the encoded records, int64; -1 for other records.
        left_out: How many pairs of the plan have an unscorable record, counted block by block.
        pairs: How many pairs are requested; one in several blocks counts once. The passes over
            answers without a demonstration count as pairs here.
        demonstrations: How many demonstrations have such pairs, with each kind of pass as one more.
    """

    def __init__(
        self,
        plan: PairPlan,
        records: EncodedRecords,
        store: ScoreStore,
        baseline_ids: Sequence[str] = (),
        *,
        support: bool = False,
    ) -> None:
        """Number every scorable record of the plan.

        `baseline_ids` are scored without a demonstration, under the number `BASELINE`. With
        `support` they are also scored without their prompt.

        Raises:
            DeliftError: the plan names a record that was not encoded.
        """
        mentioned = list(plan.records())
        known = records.rows.keys() | records.unscorable
        if unknown := [record for record in mentioned if record not in known]:
            raise DeliftError(
                f"the plan names {len(unknown):,} records that the data does not have (first: "
                f"{unknown[0]}); plan the pairs again"
            )
        scorable = [record for record in (*mentioned, *baseline_ids) if record in records.rows]
        numbers = store.ids.add(scorable)
        self.store, self._support = store, support
        self.rows = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
        self.rows[numbers] = [records.rows[record] for record in scorable]
        number = dict(zip(scorable, numbers.tolist(), strict=True))
        # Demonstration number -> target numbers in each block. A dense block makes them once.
        self._targets: dict[int, list[np.ndarray]] = defaultdict(list)
        alone = (BASELINE, UNPROMPTED_ANSWER) if support else (BASELINE,)
        self.left_out = plan.pairs + len(baseline_ids) * len(alone)
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
            for pass_number in alone:
                self._targets[pass_number].append(np.unique(np.asarray(ids, dtype=np.int32)))
                self.left_out -= len(ids)
        self.pairs = sum(len(self.targets(number)) for number in self._targets)
        self.demonstrations = len(self._targets)

    def targets(self, demonstration: int) -> np.ndarray:
        """Return the targets to score after a demonstration: ascending numbers, int32."""
        sets = self._targets[demonstration]
        return sets[0] if len(sets) == 1 else np.unique(np.concatenate(sets))

    def missing_targets(self, demonstration: int) -> np.ndarray:
        """Return the targets that are not scored yet: ascending numbers, int32."""
        missing, targets = self.store.index.missing, self.targets(demonstration)
        ids = missing(demonstration, targets)
        if demonstration == BASELINE and self._support:
            # A store of an older version has baselines alone. Their pass is made once more.
            ids = np.union1d(ids, missing(PROMPTED_ANSWER, targets))
        return ids

    def missing(self, demonstrations: Sequence[int] | None = None) -> dict[int, int]:
        """Count targets that are not scored yet: demonstration number -> count above 0."""
        numbers = sorted(self._targets) if demonstrations is None else demonstrations
        counts = {number: len(self.missing_targets(number)) for number in numbers}
        return {number: count for number, count in counts.items() if count}
