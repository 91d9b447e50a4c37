"""Leases: who is scoring which demonstrations, so that several writers share the work.

A lease is a locked file. The system unlocks it when its holder ends, in whatever way it ends.
"""

import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

SUFFIX = ".lease"


class Leases:
    """The leases of one writer; use as a context manager, which returns them all at the end."""

    def __init__(self, folder: Path) -> None:
        """Prepare to take leases, whose files lie in `folder`."""
        self.folder = folder
        self._held: dict[str, FileLock] = {}

    def __enter__(self) -> "Leases":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        # Files of writers that died can be claimed, and are removed with the own ones.
        for path in self.folder.glob(f"*{SUFFIX}"):
            self.claim(path.stem)
        self.release()

    def claim(self, key: str) -> bool:
        """Take a lease; False where another writer holds it."""
        if key in self._held:
            return True
        path = self.folder / f"{key}{SUFFIX}"
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        # For people who look: the lock alone counts.
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._held[key] = lock
        return True

    def release(self, keep: str | None = None) -> None:
        """Give back every lease but `keep`."""
        for key in self._held.keys() - {keep}:
            # Removed before it is unlocked: afterwards the file may be another writer's.
            (self.folder / f"{key}{SUFFIX}").unlink(missing_ok=True)
            self._held.pop(key).release()
