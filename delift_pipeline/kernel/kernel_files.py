"""The files of one kernel block: written and hashed column by column, read as memory maps."""

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import DIGEST_BYTES, digest_bytes, digest_json, digest_text
from delift_pipeline.kernel.columns import Columns, DenseColumns, SparseColumns

# The two stored forms of utility and their files; the per-token mean follows from `kl`.
DISTANCE, KL = "distance", "kl"
_DENSE_FILE = {DISTANCE: "{}.npy", KL: "{}.kl.npy"}
_SPARSE_FILE = {DISTANCE: "{}.csc/data.npy", KL: "{}.csc/kl.npy"}


@dataclass(frozen=True)
class BlockIndex:
    """What a block's columns hold.

    Attributes:
        name: The block's name.
        rows: record_ids of the targets.
        columns: record_ids of the demonstrations.
        tokens: int32 [rows], scored answer tokens of each target.
        indptr: int64 [columns + 1] and
        indices: int32 [pairs] of compressed sparse columns; both None where every pair is held.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    tokens: np.ndarray = field(repr=False)
    indptr: np.ndarray | None = field(default=None, repr=False)
    indices: np.ndarray | None = field(default=None, repr=False)

    @property
    def form(self) -> str:
        """`dense` or `csc`."""
        return "dense" if self.indices is None else "csc"

    def targets_of(self, j: int) -> np.ndarray | None:
        """Row numbers held in column j; None for all."""
        if self.indptr is None or self.indices is None:
            return None
        return self.indices[self.indptr[j] : self.indptr[j + 1]]

    def digest(self) -> str:
        """Digest of ids, token counts and pattern; the name is no part of the content."""
        arrays = [a.tobytes() for a in (self.indptr, self.indices) if a is not None]
        ids = [digest_text(*self.rows), digest_text(*self.columns)]
        return digest_json([self.form, *ids, digest_bytes(self.tokens.tobytes(), *arrays)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the arrays of values: [rows, columns], or [pairs]."""
        if self.indices is None:
            return (len(self.rows), len(self.columns))
        return (len(self.indices),)


class BlockWriter:
    """Writes one block's columns in order; a column is in memory only while it is written."""

    def __init__(self, folder: Path, index: BlockIndex) -> None:
        self._index, self._folder, self._files = index, folder, ExitStack()
        self._outputs: dict[str, BinaryIO] = {}
        self._states = {form: hashlib.blake2b(digest_size=DIGEST_BYTES) for form in (DISTANCE, KL)}
        self._row_of = {record: row for row, record in enumerate(index.rows)}
        self._pairs, self._positive, self._low, self._high = 0, 0, np.inf, -np.inf

    def __enter__(self) -> "BlockWriter":
        folder, index = self._folder, self._index
        write_json(folder / f"{index.name}.rows.json", list(index.rows))
        write_json(folder / f"{index.name}.columns.json", list(index.columns))
        np.save(folder / f"{index.name}.tokens.npy", index.tokens)
        if index.indptr is not None and index.indices is not None:
            (folder / f"{index.name}.csc").mkdir()
            np.save(folder / f"{index.name}.csc" / "indptr.npy", index.indptr)
            np.save(folder / f"{index.name}.csc" / "indices.npy", index.indices)
        for form in (DISTANCE, KL):
            output = self._files.enter_context(_path(self._folder, self._index, form).open("wb"))
            header = {"descr": "<f4", "fortran_order": True, "shape": self._index.shape}
            np.lib.format.write_array_header_1_0(output, header)
            self._outputs[form] = output
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def write(self, j: int, distance: np.ndarray, kl: np.ndarray) -> None:
        """Append column j: utilities of both forms, float [targets of j]."""
        for form, values in ((DISTANCE, distance), (KL, kl)):
            data = np.ascontiguousarray(values, dtype="<f4").tobytes()
            self._outputs[form].write(data)
            self._states[form].update(data)
        # Statistics leave out a record as its own demonstration.
        own = self._row_of.get(self._index.columns[j])
        targets = self._index.targets_of(j)
        others = distance
        if own is not None:
            others = np.delete(distance, own) if targets is None else distance[targets != own]
        if len(others):
            self._pairs += len(others)
            self._positive += int((others > 0).sum())
            self._low = min(self._low, float(others.min()))
            self._high = max(self._high, float(others.max()))

    def described(self) -> dict[str, Any]:
        """The block's manifest entry."""
        parts = [self._index.digest(), *(state.hexdigest() for state in self._states.values())]
        return {
            "hash": digest_json(parts),
            "form": self._index.form,
            "rows": len(self._index.rows),
            "columns": len(self._index.columns),
            "pairs": int(np.prod(self._index.shape)),
            "share_positive": self._positive / self._pairs if self._pairs else 0.0,
            "low": self._low if self._pairs else None,
            "high": self._high if self._pairs else None,
        }


def _path(folder: Path, index: BlockIndex, form: str) -> Path:
    names = _DENSE_FILE if index.form == "dense" else _SPARSE_FILE
    return folder / names[form].format(index.name)


def read_index(folder: Path, name: str) -> BlockIndex:
    """Read a block's ids, token counts and pattern.

    Raises:
        DeliftError: a file is missing or damaged.
    """
    try:
        rows, columns = (
            tuple(read_json(folder / f"{name}.{side}.json")) for side in ("rows", "columns")
        )
        tokens = np.load(folder / f"{name}.tokens.npy")
        indptr = indices = None
        if (folder / f"{name}.csc").is_dir():
            indptr = np.load(folder / f"{name}.csc" / "indptr.npy")
            indices = _mapped(folder / f"{name}.csc" / "indices.npy")
        return BlockIndex(name, rows, columns, tokens, indptr, indices)
    except (OSError, ValueError, EOFError) as error:
        said = f"the kernel block {name} is damaged ({error}); build it again"
        raise DeliftError(said) from error


def read_matrix(folder: Path, index: BlockIndex, form: str) -> Columns:
    """The block's values as columns over memory maps.

    Raises:
        DeliftError: the file is missing, damaged or of another shape.
    """
    path = _path(folder, index, form)
    try:
        values = _mapped(path)
    except (OSError, ValueError, EOFError) as error:
        raise DeliftError(f"{path.name} is damaged ({error}); build the kernel again") from error
    if values.shape != index.shape:
        raise DeliftError(
            f"{path.name} has shape {values.shape}, not {index.shape}; build the kernel again"
        )
    if index.indptr is None or index.indices is None:
        return DenseColumns(values)
    return SparseColumns(index.indptr, index.indices, values, len(index.rows))


def _mapped(path: Path) -> np.ndarray:
    """A file's array as a memory map; an empty one, which cannot be mapped, as an array."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        return np.load(path)
