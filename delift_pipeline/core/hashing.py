"""BLAKE2b digests of values, frames and files."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

DIGEST_BYTES = 16


def digest_bytes(*parts: bytes) -> str:
    """Return the BLAKE2b-128 digest of length-prefixed parts, as 32 hexadecimal characters.

    The length prefix keeps ("ab", "c") and ("a", "bc") apart.
    """
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def digest_text(*parts: str) -> str:
    """`digest_bytes` of UTF-8 texts."""
    return digest_bytes(*(part.encode("utf-8", "surrogatepass") for part in parts))


def digest_json(value: Any) -> str:
    """Return the digest of a JSON value. The order of keys does not matter."""
    return digest_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def digest_frame(frame: pl.DataFrame) -> str:
    """Return the digest of a frame's columns and rows. Parquet's encoding does not matter."""
    return digest_text(
        *(f"{name}:{frame[name].dtype}" for name in frame.columns), frame.write_ndjson()
    )


def digest_file(path: Path) -> str:
    """Return the digest of a file's bytes."""
    new = partial(hashlib.blake2b, digest_size=DIGEST_BYTES)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, new).hexdigest()


def digest_files(root: Path, paths: list[Path]) -> str:
    """Return the digest of several files: their names below `root` and their bytes."""
    named = sorted((path.relative_to(root).as_posix(), digest_file(path)) for path in paths)
    return digest_json(named)
