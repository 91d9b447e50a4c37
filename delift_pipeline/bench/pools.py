"""Draw pools and held-out records from a user's records, and plant wrong answers in a pool.

All draws depend on a seed, the records and their order only.
"""

import json
import random
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.output import write_output
from delift_pipeline.demo.draws import make_heldout, make_pool
from delift_pipeline.demo.world import TASK_NAMES, make_world
from delift_pipeline.records.read import read_records
from delift_pipeline.records.schema import record_id

Prompt = tuple[str, str]
"""Instruction and input."""


def draw_pool(
    records: pl.DataFrame, size: int, seed: int, skew: float | None = None
) -> pl.DataFrame:
    """Draw a pool of `size` records, in random order.

    Args:
        records: The records to draw from (`RECORD_SCHEMA`).
        size: How many records the pool has.
        seed: The seed. It draws the order of the tasks, the records and their order.
        skew: The k-th task of the drawn order has a share in proportion to `k ** -skew`. None gives
            each task the share that it has among the records. A task with fewer records gives all
            of them, and the other tasks fill the pool.

    Raises:
        InputError: There are fewer than `size` records.
    """
    if size > records.height:
        reason = f"{size} is more than the {records.height} records to draw from. Use a smaller one"
        raise InputError(reason, field="--pool-size")
    rng = random.Random(f"pool {seed}")
    rows: dict[str, list[int]] = {}
    for row, task in enumerate(records["task"]):
        rows.setdefault(task, []).append(row)
    order = sorted(rows)
    rng.shuffle(order)
    ranks = enumerate(order, start=1)
    weights = {task: len(rows[task]) if skew is None else k**-skew for k, task in ranks}
    counts = _share_out(size, weights, {task: len(of_task) for task, of_task in rows.items()})
    chosen = [row for task in order for row in rng.sample(rows[task], counts[task])]
    rng.shuffle(chosen)
    return records[chosen]


def _share_out(
    size: int, weights: Mapping[str, float], limits: Mapping[str, int]
) -> dict[str, int]:
    """Return whole numbers in proportion to the weights, with sum `size`, within the limits.

    What one task cannot give is shared out among the others (largest remainders first).
    """
    counts = dict.fromkeys(weights, 0)
    while rest := size - sum(counts.values()):
        # Every round fills a task or is the last one.
        open_tasks = [task for task in weights if counts[task] < limits[task]]
        whole = sum(weights[task] for task in open_tasks)
        parts = {task: rest * weights[task] / whole for task in open_tasks}
        added = {task: int(part) for task, part in parts.items()}
        by_remainder = sorted(open_tasks, key=lambda task: added[task] - parts[task])
        for task in by_remainder[: rest - sum(added.values())]:
            added[task] += 1
        for task, count in added.items():
            counts[task] = min(limits[task], counts[task] + count)
    return counts


def split_heldout(
    records: pl.DataFrame, count: int, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the records that pools may have, and `count` held-out records or a few more.

    Each task has its share of the held-out records. Records with the same prompt stay together, so
    no pool has the prompt of a held-out record.
    """
    heldout = draw_pool(records, min(count, records.height), seed).select("instruction", "input")
    shared = {"on": ["instruction", "input"], "maintain_order": "left"}
    return records.join(heldout, how="anti", **shared), records.join(heldout, how="semi", **shared)


def plant_wrong_answers(
    pool: pl.DataFrame, share: float, seed: int
) -> tuple[pl.DataFrame, frozenset[str]]:
    """Give some records the answer of another record of the same task.

    The new answer differs from every answer that the pool has for the same prompt; case and white
    space do not count. With the same seed, a greater share keeps the wrong answers of a smaller one
    and adds more.

    Args:
        pool: The records (`RECORD_SCHEMA`).
        share: The share of the pool that gets wrong answers, rounded to whole records.
        seed: The seed. It draws the records and their answers.

    Returns:
        The pool with new record ids where answers changed, and the record ids of the wrong answers.

    Raises:
        InputError: The share is not within 0 and 1, or too few records have another answer of their
            task to take.
    """
    if not 0 <= share <= 1:
        raise InputError(f"{share} is not within 0 and 1", field="--wrong")
    rng, count = random.Random(f"wrong {seed}"), round(share * pool.height)
    rows = pool.select("record_id", "instruction", "input", "output", "task").to_dicts()
    right: dict[Prompt, set[str]] = {}
    of_task: dict[str, list[str]] = {}
    for row in rows:
        right.setdefault((row["instruction"], row["input"]), set()).add(_plain(row["output"]))
        of_task.setdefault(row["task"], []).append(row["output"])
    wrong: set[str] = set()
    for index in rng.sample(range(len(rows)), len(rows)):
        if len(wrong) == count:
            break
        row = rows[index]
        known = right[row["instruction"], row["input"]]
        if others := [text for text in of_task[row["task"]] if _plain(text) not in known]:
            row["output"] = rng.choice(others)
            row["record_id"] = record_id(row["instruction"], row["input"], row["output"])
            # Another record with this prompt must not get the same text: it would be the same one.
            known.add(_plain(row["output"]))
            wrong.add(row["record_id"])
    if len(wrong) < count:
        reason = f"{share} of the pool are {count} records, but only {len(wrong)} have another"
        raise InputError(
            f"{reason} answer of their task to take. Use a smaller share", field="--wrong"
        )
    changed = pl.DataFrame({name: [row[name] for row in rows] for name in ("record_id", "output")})
    return pool.with_columns(changed), frozenset(wrong)


def demo_pool(
    seed: int, size: int, wrong_share: float, heldout_size: int
) -> tuple[pl.DataFrame, frozenset[str], pl.DataFrame]:
    """Draw a pool of the demo world that the seed makes.

    Returns:
        The pool, the record ids of its wrong answers, and held-out records of its facts.
    """
    world = make_world(seed)
    records, truths = make_pool(world, size, seed, wrong_share)
    per_task = max(1, heldout_size // len(TASK_NAMES))
    heldout = make_heldout(world, per_task, seed, facts={truth["fact"] for truth in truths})
    pool = read_rows(records)
    false = {truth["id"] for truth in truths if not truth["correct"]}
    names = zip(pool["source_ids"].list.first(), pool["record_id"], strict=True)
    return pool, frozenset(record for name, record in names if name in false), read_rows(heldout)


def read_rows(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return rows as records, as if they were read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return read_records(path).frame


def write_pool(pool: pl.DataFrame, path: Path) -> Path:
    """Write a pool as JSON Lines, and return the path."""
    rows = pool.select(
        "instruction", "input", "output", "source", "task", id=pl.col("source_ids").list.first()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, rows.write_ndjson().encode("utf-8"))
    return path


def _plain(text: str) -> str:
    """Return a text in lower case, without differences of white space."""
    return " ".join(text.lower().split())
