"""The id table: record_id -> a small number, append-only."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

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

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, record_ids: Sequence[str]) -> np.ndarray:
        """The records' numbers, int32 [records]; `UNKNOWN` where a record has none."""
        self.refresh()
        found = (self._numbers.get(record, UNKNOWN) for record in record_ids)
        return np.fromiter(found, dtype=np.int32, count=len(record_ids))

    def add(self, record_ids: Sequence[str]) -> np.ndarray:
        """The records' numbers, int32 [records], new ones for those that have none yet.

        Nothing is written where all have one, so a table that cannot be written can be read.
        """
        if UNKNOWN not in (numbers := self.numbers(record_ids)):
            return numbers
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.refresh()
            fresh = dict.fromkeys(r for r in record_ids if r not in self._numbers)
            if fresh:
                self._append(b"".join(bytes.fromhex(record) for record in fresh))
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

    def _append(self, raw: bytes) -> None:
        with self.path.open("r+b" if self.path.exists() else "xb") as handle:
            handle.seek(len(self._numbers) * ID_BYTES)
            handle.write(raw)
            handle.truncate()
            handle.flush()
            os.fsync(handle.fileno())
        self.refresh()
