"""Writes that are either whole or absent: a temporary name beside the target, then a rename."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

TEMPORARY_MARK = ".tmp-"


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no reader looks at (`gc` removes what a kill leaves)."""
    return path.with_name(f"{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success fsync it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes the place of `path`, whole.

    The former folder is moved aside before the rename and removed after it; it comes back where
    the new one cannot take its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = temporary_path(path), temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            sync(file)
        if path.exists():
            os.replace(path, former)
        try:
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):  # another writer's folder may stand there by now
                os.replace(former, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a Parquet file atomically; equal frames give equal bytes."""
    with replace_file(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", statistics=True)
