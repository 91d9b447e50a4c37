"""Atomic writes: to a temporary name next to the target, which is then renamed."""

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
    """Return a temporary name next to `path`. No reader looks at it, and `gc` removes leftovers."""
    return path.with_name(f"{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}-{path.name}")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. If the body succeeds, fsync it and rename it to `path`."""
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
    """Yield a temporary folder. If the body succeeds, it replaces the folder `path`.

    The former folder is moved aside before the rename and removed after it. If the rename fails,
    the former folder is put back.
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
            with suppress(OSError):  # another writer may have put its folder there by now
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
