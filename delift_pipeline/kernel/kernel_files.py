"""Files of one kernel block: they are written and hashed column by column, read as memory maps."""

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import DIGEST_BYTES, digest_bytes, digest_json, digest_text
from delift_pipeline.kernel.columns import Columns, DenseColumns, SparseColumns

# The two stored forms of utility and their files. The per-token mean is computed from `kl`.
FORMS = DISTANCE, KL = "distance", "kl"
_DENSE_FILE = {DISTANCE: "{}.npy", KL: "{}.kl.npy"}
_SPARSE_FILE = {DISTANCE: "{}.csc/data.npy", KL: "{}.csc/kl.npy"}


@dataclass(frozen=True)
class BlockIndex:
    """Ids, token counts and the stored pairs of a block.

    Attributes:
        name: The block's name.
        rows: record_ids of the targets.
        columns: record_ids of the demonstrations.
        tokens: int32 [rows], scored answer tokens of each target.
        pattern: `indptr` int64 [columns + 1] and `indices` int32 [pairs] of compressed sparse
            columns; None if every pair is stored.
    """

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    tokens: np.ndarray = field(repr=False)
    pattern: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    @property
    def form(self) -> str:
        """Return `dense` or `csc`."""
        return "dense" if self.pattern is None else "csc"

    def targets_of(self, j: int) -> np.ndarray | None:
        """Return the row numbers that column j stores; None for all."""
        if self.pattern is None:
            return None
        indptr, indices = self.pattern
        return indices[indptr[j] : indptr[j + 1]]

    def digest(self) -> str:
        """Return the digest of ids, token counts and pattern. It does not depend on the name."""
        arrays = [array.tobytes() for array in self.pattern or ()]
        ids = [digest_text(*self.rows), digest_text(*self.columns)]
        return digest_json([self.form, *ids, digest_bytes(self.tokens.tobytes(), *arrays)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the arrays of values: [rows, columns], or [pairs]."""
        if self.pattern is None:
            return (len(self.rows), len(self.columns))
        return (len(self.pattern[1]),)


def write_block(
    folder: Path, index: BlockIndex, columns: Iterable[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Write and hash a block, with one column in memory at a time.

    Args:
        folder: The folder of the kernel.
        index: Ids, token counts and stored pairs of the block.
        columns: For each demonstration in order, its utilities in both forms, float [targets].

    Returns:
        The block's manifest entry. Its statistics leave out the utility of a record for itself.
    """
    for side, ids in (("rows", index.rows), ("columns", index.columns)):
        write_json(folder / f"{index.name}.{side}.json", list(ids))
    np.save(folder / f"{index.name}.tokens.npy", index.tokens)
    if index.pattern is not None:
        (folder / f"{index.name}.csc").mkdir()
        for part, array in zip(("indptr", "indices"), index.pattern, strict=True):
            np.save(folder / f"{index.name}.csc" / f"{part}.npy", array)
    states = [hashlib.blake2b(digest_size=DIGEST_BYTES) for _ in FORMS]
    row_of = {record: row for row, record in enumerate(index.rows)}
    pairs, positive, low, high = 0, 0, np.inf, -np.inf
    with ExitStack() as files:
        outputs = [files.enter_context(_file_of(folder, index, form).open("wb")) for form in FORMS]
        for output in outputs:
            header = {"descr": "<f4", "fortran_order": True, "shape": index.shape}
            np.lib.format.write_array_header_1_0(output, header)
        for j, forms in enumerate(columns):
            for values, output, state in zip(forms, outputs, states, strict=True):
                data = np.ascontiguousarray(values, dtype="<f4").tobytes()
                output.write(data)
                state.update(data)
            others, targets = forms[0], index.targets_of(j)
            if (own := row_of.get(index.columns[j])) is not None:
                others = np.delete(others, own) if targets is None else others[targets != own]
            if len(others):
                pairs, positive = pairs + len(others), positive + int((others > 0).sum())
                low, high = min(low, float(others.min())), max(high, float(others.max()))
    return {
        "hash": digest_json([index.digest(), *(state.hexdigest() for state in states)]),
        "form": index.form,
        "rows": len(index.rows),
        "columns": len(index.columns),
        "pairs": int(np.prod(index.shape)),
        "share_positive": positive / pairs if pairs else 0.0,
        "low": low if pairs else None,
        "high": high if pairs else None,
    }


def _file_of(folder: Path, index: BlockIndex, form: str) -> Path:
    names = _DENSE_FILE if index.form == "dense" else _SPARSE_FILE
    return folder / names[form].format(index.name)


def read_index(folder: Path, name: str) -> BlockIndex:
    """Read a block's ids, token counts and pattern.

    Raises:
        DeliftError: A file is missing or damaged.
    """
    try:
        rows, columns = (
            tuple(read_json(folder / f"{name}.{side}.json")) for side in ("rows", "columns")
        )
        tokens = np.load(folder / f"{name}.tokens.npy")
        sparse, pattern = folder / f"{name}.csc", None
        if sparse.is_dir():
            pattern = np.load(sparse / "indptr.npy"), _memory_map(sparse / "indices.npy")
        return BlockIndex(name, rows, columns, tokens, pattern)
    except (OSError, ValueError, EOFError) as error:
        reason = f"the kernel block {name} is damaged ({error}). Build the kernel again"
        raise DeliftError(reason) from error


def read_matrix(folder: Path, index: BlockIndex, form: str) -> Columns:
    """Open the block's values as columns over memory maps.

    Raises:
        DeliftError: The file is missing, damaged or of another shape.
    """
    path = _file_of(folder, index, form)
    try:
        values = _memory_map(path)
    except (OSError, ValueError, EOFError) as error:
        raise DeliftError(f"{path.name} is damaged ({error}). Build the kernel again") from error
    if values.shape != index.shape:
        raise DeliftError(
            f"{path.name} has shape {values.shape}, not {index.shape}. Build the kernel again"
        )
    if index.pattern is None:
        return DenseColumns(values)
    return SparseColumns(*index.pattern, values, len(index.rows))


def _memory_map(path: Path) -> np.ndarray:
    """Open a file's array as a memory map. An empty array, which cannot be mapped, is read."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        return np.load(path)
