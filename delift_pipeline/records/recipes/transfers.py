"""A transfer of the paper as folders that can be dropped into the inbox."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.inbox import VERSION_FILE
from delift_pipeline.records.recipes.read import benchmark_rows, drawn, write_rows
from delift_pipeline.records.recipes.table import Recipe, Rows, Transfer, recipe_of
from delift_pipeline.storage.atomic import replacing_folder, write_text
from delift_pipeline.storage.home import checked_version

Split = Callable[[Recipe, str], Rows]
"""All rows of a recipe's split."""


@dataclass(frozen=True)
class Sizes:
    """How many records each part gets at most, drawn with the seed.

    Attributes:
        pool: Records to choose from.
        target: Examples of the goal.
        heldout: For evaluation only.
    """

    pool: int = 2000
    target: int = 100
    heldout: int = 300


def write_transfer(
    folder: Path,
    transfer: Transfer,
    sources: Mapping[str, str],
    sizes: Sizes,
    seed: int = 0,
) -> list[str]:
    """Write one folder a version: `pool.jsonl`, `heldout.jsonl`, perhaps `target.jsonl`.

    Args:
        folder: Where the versions' folders go, such as a home's inbox.
        transfer: What to write.
        sources: Files, folders or hub ids by recipe; a recipe's own hub id where it is not named.
        sizes: Of the parts.
        seed: Of all draws.

    Returns:
        The versions' names, in the order in which they follow each other.

    Raises:
        Refused: a source is missing or unreadable, or a folder of that name exists.
    """

    def split(recipe: Recipe, name: str) -> Rows:
        return benchmark_rows(recipe, sources.get(recipe.name), name)

    build = _task_specific if transfer.stage == "task_specific" else _continual
    parts = build(recipe_of(transfer.pool), recipe_of(transfer.goal), split, seed)
    versions = {f"{transfer.name}-v{number}": own for number, own in enumerate(parts, start=1)}
    taken = [name for name in versions if (folder / name).exists()]
    if taken:
        raise Refused(*(Fault("exists already", file=str(folder / name)) for name in taken))
    parents: list[str] = []
    for version, own in versions.items():
        stated = {"dataset": transfer.name, "version": version, "parents": parents}
        with replacing_folder(folder / checked_version(version)) as temporary:
            for part, rows in own.items():
                kept = drawn(rows, getattr(sizes, part), seed)
                write_rows(temporary / f"{part}.jsonl", kept)
            write_text(temporary / VERSION_FILE, yaml.safe_dump(stated, sort_keys=False))
        parents = [version]
    return list(versions)


def _task_specific(pool: Recipe, goal: Recipe, split: Split, seed: int) -> list[dict[str, Rows]]:
    """One version; MT-Bench has one split, whose questions are halved."""
    chosen_from = split(pool, "train")
    if goal.name == "mt_bench":
        target, heldout = _halves(split(goal, "test"), _question, seed)
    else:
        target, heldout = split(goal, "train"), split(goal, "test")
    return [{"pool": chosen_from, "target": target, "heldout": heldout}]


def _continual(old: Recipe, new: Recipe, split: Split, seed: int) -> list[dict[str, Rows]]:
    """The old version and the new one; of one recipe, two domains without a common topic."""
    if old is new:
        pools, heldouts = (_halves(split(old, name), _topic, seed) for name in ("train", "test"))
    else:
        pools, heldouts = ([split(one, name) for one in (old, new)] for name in ("train", "test"))
    return [{"pool": p, "heldout": h} for p, h in zip(pools, heldouts, strict=True)]


def _halves(rows: Rows, group: Callable[[dict[str, str]], str], seed: int) -> tuple[Rows, Rows]:
    """Rows split by their group, so that no group is on both sides."""
    names = sorted({group(row) for row in rows})
    random.Random(seed).shuffle(names)
    first = set(names[: len(names) // 2])
    return [r for r in rows if group(r) in first], [r for r in rows if group(r) not in first]


def _topic(row: dict[str, str]) -> str:
    return row["input"].partition("\n")[0].partition(" / ")[0]


def _question(row: dict[str, str]) -> str:
    name = row.get("source_id") or row.get("id") or row["instruction"]
    return name.rpartition("-turn")[0] or name
