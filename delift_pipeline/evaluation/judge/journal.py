"""Every reply a judge gave, appended as it comes: no question is paid for twice."""

import json
import os
from pathlib import Path
from typing import Any

from delift_pipeline.evaluation.judge.reply import Reply
from delift_pipeline.storage.json_text import json_text

FILE = "journal.jsonl"


class Journal:
    """Replies by question, on disk.

    One line a reply. A kill can tear only the last line, which is left out when reading and cut
    off before the next is written. Failed questions are not kept: they are asked again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.replies: dict[str, Reply] = {}
        self._whole = 0
        if self.path.is_file():
            self._read()

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is on disk when this returns."""
        self.replies[key] = reply
        if reply.status == "failed":
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json_text({"key": key, **reply.as_json()}) + "\n"
        with self.path.open("ab") as handle:
            handle.truncate(self._whole)
            handle.seek(self._whole)
            handle.write(line.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
        self._whole += len(line.encode("utf-8"))

    def _read(self) -> None:
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            row: dict[str, Any] = json.loads(line)
            key = row.pop("key")
            self.replies[key] = Reply(**row)
            self._whole += len(line)
