"""Where the pools of `delift bench quality --data` come from: a user's file, or the demo world."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.bench.pools import demo_pool, draw_pool, plant_wrong_answers, split_heldout
from delift_pipeline.core.errors import InputError
from delift_pipeline.records.read import read_parts, read_records
from delift_pipeline.records.schema import content_hash

POOL_SIZE, HELDOUT_SIZE = 400, 200


@dataclass(frozen=True)
class Source:
    """Where pools come from: records of a file, or the demo world (`records` is None).

    Attributes:
        records: The records that pools are drawn from.
        heldout: The held-out records.
        target: The target set and its file, or None.
        skew: How unequal the tasks of a pool are, see `draw_pool`.
    """

    records: pl.DataFrame | None
    heldout: pl.DataFrame | None
    target: Path | None
    skew: float | None
    pool_size: int
    heldout_size: int
    notes: tuple[str, ...] = ()

    def pool(self, seed: int, wrong_share: float) -> "Pool":
        """Draw a pool with planted wrong answers, and its held-out records."""
        if self.records is None or self.heldout is None:
            return Pool(*demo_pool(seed, self.pool_size, wrong_share, self.heldout_size))
        clean = draw_pool(self.records, self.pool_size, seed, self.skew)
        return Pool(*plant_wrong_answers(clean, wrong_share, seed), self.heldout)

    @cached_property
    def identity(self) -> list[Any]:
        """What decides the pools, apart from seed and share of wrong answers."""
        frames = [f if f is None else content_hash(f) for f in (self.records, self.heldout)]
        target = None if self.target is None else content_hash(read_records(self.target).frame)
        return [*frames, target, self.skew, self.pool_size, self.heldout_size]


@dataclass(frozen=True)
class Pool:
    """A pool, the record ids of its wrong answers, and the held-out records."""

    records: pl.DataFrame
    wrong: frozenset[str]
    heldout: pl.DataFrame


def read_source(
    data: Path | None,
    heldout: Path | None = None,
    target: Path | None = None,
    *,
    skew: float | None = None,
    pool_size: int | None = None,
    heldout_size: int = HELDOUT_SIZE,
) -> Source:
    """Read the files; without `data`, pools are of the demo world.

    Without `heldout`, a share of the records (at most a fifth) is held out. No pool has a record or
    a prompt of the held-out records or of the target set.

    Raises:
        InputError: A file cannot be read, too few records are left, or an option does not fit.
    """
    if data is None:
        own = {"--heldout": heldout, "--target": target, "--skew": skew}
        for name in (name for name, value in own.items() if value is not None):
            raise InputError("the demo world has its own. Leave it out", field=name)
        return Source(None, None, None, None, pool_size or POOL_SIZE, heldout_size)
    read, faults = read_parts({"data": data, "heldout": heldout, "target": target})
    if faults:
        raise InputError(*faults)
    prompt, notes = ["instruction", "input"], []
    records = read["data"].frame
    if heldout is None:
        size = min(heldout_size, records.height // 5)
        records, questions = split_heldout(records, size, 0)
        notes.append(f"{questions.height} records of the file are held out, by seed.")
    else:
        questions = read["heldout"].frame
        questions = draw_pool(questions, min(heldout_size, questions.height), 0)
    for name, frame in (
        ("held-out", questions),
        ("target", read["target"].frame if target else None),
    ):
        left = records if frame is None else records.join(frame, prompt, "anti")
        if left.height < records.height:
            count = records.height - left.height
            notes.append(f"{count} records with the prompt of a {name} record are in no pool.")
            records = left
    if records.is_empty() or questions.is_empty():
        raise InputError("there are too few records. Pass a larger file", field="--data")
    size = min(POOL_SIZE, records.height) if pool_size is None else pool_size
    draw_pool(records, size, 0, skew)
    if 2 * size > records.height:
        overlap = f"Pools overlap: each has {size} of the same {records.height} records"
        notes.append(f"{overlap}, so the standard errors are too small.")
    return Source(records, questions, target, skew, size, heldout_size, tuple(notes))
