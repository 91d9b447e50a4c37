"""Leases: who is scoring which demonstrations, so that two writers share the work.

A lease is a small file that its holder keeps touching. One whose holder died, or that nobody has
touched for a while, is taken over.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

STALE_SECONDS = 60.0
TOUCH_SECONDS = 5.0
SUFFIX = ".lease"


class Leases:
    """The leases of one writer; use as a context manager, which returns them all at the end."""

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS) -> None:
        """Prepare to take leases.

        Args:
            folder: Where lease files lie.
            stale_seconds: A lease untouched for so long is free, whoever holds it.
        """
        self.folder, self.stale_seconds = folder, stale_seconds
        self.holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self.held: set[str] = set()
        self._lock = FileLock(folder / ".lock")
        self._stop = threading.Event()
        self._toucher = threading.Thread(target=self._keep_touching, daemon=True)

    def __enter__(self) -> "Leases":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._toucher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._toucher.join()
        self.release(set(self.held))
        self._sweep()

    def claim(self, key: str) -> bool:
        """Take a lease; False where another writer holds it."""
        if key in self.held:
            return True
        path = self._path(key)
        with self._lock:
            if path.exists() and not self._stale(path):
                return False
            path.write_text(json.dumps(self.holder), encoding="utf-8")
        self.held.add(key)
        return True

    def release(self, keys: set[str]) -> None:
        """Give leases back; one that was taken over stays with its new holder."""
        with self._lock:
            for key in keys:
                path = self._path(key)
                if self._read(path).get("token") == self.holder["token"]:
                    path.unlink(missing_ok=True)
        self.held -= keys

    def _sweep(self) -> None:
        """Remove the leases of holders that died."""
        with self._lock:
            for path in self.folder.glob(f"*{SUFFIX}"):
                if self._stale(path):
                    path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _stale(self, path: Path) -> bool:
        holder = self._read(path)
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return True
        if age > self.stale_seconds:
            return True
        here = holder.get("host") == self.holder["host"]
        return here and not _alive(int(holder.get("pid", 0)))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def _keep_touching(self) -> None:
        while not self._stop.wait(min(TOUCH_SECONDS, self.stale_seconds / 4)):
            for key in tuple(self.held):
                try:
                    os.utime(self._path(key))
                except FileNotFoundError:
                    continue


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
