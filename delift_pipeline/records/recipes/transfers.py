"""A transfer of the paper as folders that can be dropped into the inbox."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.recipes.read import benchmark_rows, write_rows
from delift_pipeline.records.recipes.table import Recipe, Transfer, recipe_of
from delift_pipeline.records.version_file import VERSION_FILE
from delift_pipeline.storage.atomic import replacing_folder, write_text
from delift_pipeline.storage.home import checked_version

Rows = list[dict[str, str]]


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
    sizes: Sizes | None = None,
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
    sizes = sizes or Sizes()
    build = _task_specific if transfer.stage == "task_specific" else _continual
    versions = build(transfer, sources, sizes, seed)
    taken = [name for name in versions if (folder / name).exists()]
    if taken:
        raise Refused(*(Fault("exists already", file=str(folder / name)) for name in taken))
    parents: list[str] = []
    for name, parts in versions.items():
        _write(folder / checked_version(name), transfer, name, parents, parts)
        parents = [name]
    return list(versions)


def _task_specific(
    transfer: Transfer, sources: Mapping[str, str], sizes: Sizes, seed: int
) -> dict[str, dict[str, Rows]]:
    pool_recipe, goal = recipe_of(transfer.pool), recipe_of(transfer.goal)
    pool = _split(pool_recipe, sources, "train", sizes.pool, seed)
    target, heldout = _goal_parts(goal, sources, sizes, seed)
    return {f"{transfer.name}-v1": {"pool": pool, "target": target, "heldout": heldout}}


def _goal_parts(
    goal: Recipe, sources: Mapping[str, str], sizes: Sizes, seed: int
) -> tuple[Rows, Rows]:
    """Target set and held-out records: of two splits, or of one that is halved by question."""
    if goal.name != "mt_bench":
        target = _split(goal, sources, "train", sizes.target, seed)
        return target, _split(goal, sources, "test", sizes.heldout, seed)
    rows = benchmark_rows(goal, sources.get(goal.name), "test")
    first, second = _halves(rows, [_question(row) for row in rows], seed)
    return _drawn(first, sizes.target, seed), _drawn(second, sizes.heldout, seed)


def _continual(
    transfer: Transfer, sources: Mapping[str, str], sizes: Sizes, seed: int
) -> dict[str, dict[str, Rows]]:
    old, new = recipe_of(transfer.pool), recipe_of(transfer.goal)
    if old is not new:
        parts = [
            {
                "pool": _split(recipe, sources, "train", sizes.pool, seed),
                "heldout": _split(recipe, sources, "test", sizes.heldout, seed),
            }
            for recipe in (old, new)
        ]
    else:
        pools = _by_topic(benchmark_rows(old, sources.get(old.name), "train"), seed)
        held = _by_topic(benchmark_rows(old, sources.get(old.name), "test"), seed)
        parts = [
            {
                "pool": _drawn(pool, sizes.pool, seed),
                "heldout": _drawn(heldout, sizes.heldout, seed),
            }
            for pool, heldout in zip(pools, held, strict=True)
        ]
    return {f"{transfer.name}-v{number}": part for number, part in enumerate(parts, start=1)}


def _split(recipe: Recipe, sources: Mapping[str, str], split: str, limit: int, seed: int) -> Rows:
    return benchmark_rows(recipe, sources.get(recipe.name), split, limit=limit, seed=seed)


def _by_topic(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Two domains: the rows of one half of the topics, and of the other."""
    return _halves(
        rows, [row["input"].partition("\n")[0].partition(" / ")[0] for row in rows], seed
    )


def _halves(rows: Rows, groups: list[str], seed: int) -> tuple[Rows, Rows]:
    """Rows split by their group, so that no group is on both sides."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    first = set(names[: len(names) // 2])
    pairs = list(zip(rows, groups, strict=True))
    return (
        [row for row, group in pairs if group in first],
        [row for row, group in pairs if group not in first],
    )


def _question(row: dict[str, str]) -> str:
    name = row.get("source_id") or row.get("id") or row["instruction"]
    return name.rpartition("-turn")[0] or name


def _drawn(rows: Rows, most: int, seed: int) -> Rows:
    if len(rows) <= most:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), most))]


def _write(
    folder: Path, transfer: Transfer, name: str, parents: list[str], parts: Mapping[str, Rows]
) -> None:
    stated = {"dataset": transfer.name, "version": name, "parents": parents}
    with replacing_folder(folder) as temporary:
        for part, rows in parts.items():
            write_rows(temporary / f"{part}.jsonl", rows)
        write_text(temporary / VERSION_FILE, yaml.safe_dump(stated, sort_keys=False))
