"""Build and load the utility kernel: how much demonstration j helps target i.

    U_ij    = d(i | nothing) - d(i | demonstration j)                     in [-1, 1]
    UKL_ij  = sum_t log p(y_it | j, x_i, y_i<t) - log p(y_it | x_i, y_i<t)  (and its per-token mean)

Rows are targets, columns are demonstrations, and values are stored column after column. Both forms
come from the same scores. Columns are streamed from the score store, so a kernel may be larger than
the memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from delift_pipeline.core.atomic import replace_folder
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.kernel.block import Block, RowScaledColumns, UtilityForm
from delift_pipeline.kernel.kernel_files import (
    DISTANCE,
    KL,
    BlockIndex,
    read_index,
    read_matrix,
    write_block,
)
from delift_pipeline.scoring.plan import PairBlock, PairPlan

NEIGHBOURS = "neighbours"


class ScoreReader(Protocol):
    """A source of scores, such as the score store."""

    def column(self, demonstration: str, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return squared distances and summed log-probabilities, float32 [targets].

        They are NaN for pairs without scores.
        """
        ...

    def baseline(self, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both without a demonstration, and the answers' token counts, int32 [targets]."""
        ...


def build_kernel(
    home: Home,
    version: str,
    fingerprint: str,
    reader: ScoreReader,
    plan: PairPlan,
    *,
    unscorable: Mapping[str, str] | None = None,
    neighbours: PairBlock | None = None,
    parents: dict[str, str] | None = None,
    request: dict[str, Any] | None = None,
    code_version: str = "1",
    run_id: str | None = None,
) -> Manifest:
    """Write all blocks of a plan to `kernels/<version>/<fingerprint>`, or nothing if one fails.

    `unscorable` gives the reason by record_id; these records get no row and no column. `neighbours`
    are near pairs of the pool. If the plan's `self` block holds all pairs, the near pairs are also
    written as the block `neighbours`. So a selection from near pairs stays the same when another
    arm has all pairs scored.

    Returns:
        The manifest. `details["blocks"]` has hash, form, rows, columns, pairs, share_positive, low
        and high of each block (statistics of the distance form without the diagonal).

    Raises:
        DeliftError: Scores of the plan are missing or not finite.
    """
    unscorable = dict(unscorable or {})
    blocks: dict[str, PairBlock] = {block.name: block for block in plan.blocks}
    own = plan.block("self")
    if neighbours is not None and own is not None and own.dense:
        blocks[NEIGHBOURS] = neighbours
    with replace_folder(home.kernel(version, fingerprint)) as folder:
        entries = {
            name: _build_block(folder, name, block, reader, unscorable)
            for name, block in blocks.items()
        }
        left_out = {record: unscorable[record] for record in plan.records() if record in unscorable}
        pairs = sum(entry["pairs"] for entry in entries.values())
        manifest = Manifest(
            kind="kernel",
            content_hash=digest_json({name: entry["hash"] for name, entry in entries.items()}),
            parents=parents or {},
            fingerprint=fingerprint,
            counts={"pairs": pairs, "unscorable": len(left_out)},
            details={"blocks": entries, "unscorable": left_out},
            request=request or {},
            code_version=code_version,
            run_id=run_id,
        )
        manifest.write(folder)
    return manifest


def _build_block(
    folder: Path,
    name: str,
    block: PairBlock,
    reader: ScoreReader,
    unscorable: Mapping[str, str],
) -> dict[str, Any]:
    """Write one block and return its manifest entry."""
    rows = tuple(record for record in block.targets if record not in unscorable)
    squared, logprob, tokens = reader.baseline(rows)
    _refuse_missing(squared, logprob, f"baseline scores of the block {name}", "the baseline")
    index = _index_of(name, block, rows, np.asarray(tokens, dtype=np.int32), unscorable)
    distance = np.sqrt(squared.astype(np.float64))

    def columns() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for j, demonstration in enumerate(index.columns):
            numbers = index.targets_of(j)
            targets = rows if numbers is None else tuple(rows[i] for i in numbers)
            where = slice(None) if numbers is None else numbers
            scores = reader.column(demonstration, targets)
            what = f"scores of demonstration {demonstration} in the block {name}"
            _refuse_missing(*scores, what, "the plan's pairs")
            squared_after, logprob_after = (values.astype(np.float64) for values in scores)
            yield distance[where] - np.sqrt(squared_after), logprob_after - logprob[where]

    return write_block(folder, index, columns())


def _refuse_missing(squared: np.ndarray, logprob: np.ndarray, what: str, first: str) -> None:
    absent = int((~(np.isfinite(squared) & np.isfinite(logprob))).sum())
    if absent:
        reason = f"{absent:,} of {len(squared):,} {what} are missing or not finite"
        raise DeliftError(f"{reason}. Score {first} first")


def _index_of(
    name: str,
    block: PairBlock,
    rows: tuple[str, ...],
    tokens: np.ndarray,
    unscorable: Mapping[str, str],
) -> BlockIndex:
    """Return the block's index without unscorable records."""
    numbers = [j for j, record in enumerate(block.demonstrations) if record not in unscorable]
    columns = tuple(block.demonstrations[j] for j in numbers)
    if block.dense:
        return BlockIndex(name, rows, columns, tokens)
    # The row number of each target after unscorable ones are removed; -1 for those.
    scorable = np.array([record not in unscorable for record in block.targets], dtype=bool)
    place = np.where(scorable, np.cumsum(scorable) - 1, -1)
    parts = [place[block.targets_of(j)] for j in numbers]
    parts = [part[part >= 0].astype(np.int32) for part in parts]
    indptr = np.zeros(len(numbers) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=indptr[1:])
    indices = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
    return BlockIndex(name, rows, columns, tokens, (indptr, indices))


def block_names(manifest: Manifest) -> dict[str, str]:
    """Return block names that a selector can read -> names that they are stored under.

    If only near pairs were scored, they are stored as `self` and read as `neighbours`, and there is
    no block `self` to read.
    """
    stored: dict[str, Any] = manifest.details["blocks"]
    near = "self" in stored and stored["self"]["form"] == "csc"
    return {NEIGHBOURS if near and name == "self" else name: name for name in stored}


def block_hashes(manifest: Manifest) -> dict[str, str]:
    """Return block names that a selector can read -> content hashes."""
    stored = manifest.details["blocks"]
    return {name: stored[under]["hash"] for name, under in block_names(manifest).items()}


def load_block(
    home: Home, version: str, fingerprint: str, name: str, form: UtilityForm = "distance"
) -> Block:
    """Open a block of a stored kernel. Its values stay in the file until they are read.

    `name` is `self` (all pairs), `neighbours` (near pairs), `target`, `existing` or `replay`.
    `form` is `distance`, `kl`, or `kl_mean` (per answer token of the target).

    Raises:
        DeliftError: There is no kernel, or it is damaged.
        InputError: The kernel does not have this block.
    """
    folder = home.kernel(version, fingerprint)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DeliftError(f"{version} has no kernel for the fingerprint {fingerprint}. Build it")
    stored = block_names(manifest).get(name)
    if stored is None:
        names = ", ".join(sorted(block_names(manifest)))
        sentence = f"the kernel of {version} has no block {name} (it has {names})"
        near = manifest.details["blocks"].get("self")
        if name == "self" and near is not None:
            more = near["rows"] * near["columns"] - near["pairs"]
            sentence += f". It needs {more:,} more pairs: set coverage to all and score them"
        raise InputError(sentence)
    index = read_index(folder, stored)
    matrix = read_matrix(folder, index, DISTANCE if form == "distance" else KL)
    if form == "kl_mean":
        matrix = RowScaledColumns(matrix, 1.0 / np.maximum(index.tokens, 1))
    unscorable = frozenset(manifest.details["unscorable"])
    entry = manifest.details["blocks"][stored]
    return Block(name, index.rows, index.columns, matrix, entry["hash"], unscorable)
