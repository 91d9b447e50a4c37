"""Read benchmarks as rows in the columns of records, and write transfers as inbox folders."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from delift_pipeline.core.atomic import replace_folder, write_text
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.home import check_version
from delift_pipeline.core.output import write_output
from delift_pipeline.records.inbox import VERSION_FILE
from delift_pipeline.records.json_rows import JSON_LINES
from delift_pipeline.records.recipes.table import Recipe, Rows, Transfer, find_recipe
from delift_pipeline.records.schema import TEXT_FIELDS
from delift_pipeline.records.tables import read_table

RECORD_COLUMNS = (*TEXT_FIELDS, "source_id", "id", "source", "task")
"""The columns that are read from a row that already has the columns of a record."""


def benchmark_rows(
    recipe: Recipe,
    source: str | None,
    split: str = "train",
    *,
    limit: int | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> Rows:
    """Return the rows of a split in the columns of records.

    Args:
        recipe: The benchmark.
        source: A file, a folder, a hub id, or None for the recipe's own hub id.
        split: `train` or `test`.
        limit: The largest number of rows. They are drawn with `seed` and stay in file order.
        seed: The seed of that draw.
        revision: The revision of the dataset at the hub.

    Raises:
        InputError: There is no file, a row cannot be read, or a row has none of the known columns.
    """
    files = split_files(recipe, source, split, revision)
    rows = [row for path in files for row in _read_rows(recipe, path)]
    if not rows:
        raise InputError(Fault(f"the {split} split of {recipe.name} has no rows", file=source))
    return draw_rows(rows, limit, seed)


def draw_rows(rows: Rows, limit: int | None, seed: int) -> Rows:
    """Draw at most `limit` rows with a seed, without changing their order."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def split_files(
    recipe: Recipe, source: str | None, split: str, revision: str | None = None
) -> list[Path]:
    """Return the files of a split.

    Raises:
        InputError: The split has no files.
    """
    if split not in recipe.files:
        raise InputError(f"{split!r} is unknown. Use train or test.", field="split")
    patterns = recipe.files[split]
    folder = Path(source).expanduser() if source else None
    if folder is not None and folder.is_file():
        return [folder]
    if folder is None or not folder.is_dir():
        hub_id = source or recipe.hub
        if hub_id is None:
            reason = f"give the files of {recipe.name} by --source: {recipe.note}"
            raise InputError(reason, field="source")
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError

        download_options = {"revision": revision, "allow_patterns": list(patterns)}
        try:
            folder = Path(snapshot_download(hub_id, repo_type="dataset", **download_options))
        except (HFValidationError, OSError) as error:
            first = str(error).splitlines()[0]
            reason = f"This is neither a file, a folder nor a dataset at the hub: {first}"
            raise InputError(Fault(reason, file=hub_id)) from error
    for pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            return files
    looked = f"looked for {', '.join(patterns)}"
    raise InputError(
        Fault(f"The {split} split of {recipe.name} has no file ({looked}).", str(folder))
    )


def write_rows(path: Path, rows: Rows) -> None:
    """Write all rows as JSON Lines, or no file at all."""
    write_output(path, JSON_LINES.write(rows, None))


def _read_rows(recipe: Recipe, path: Path) -> Rows:
    rows, faults = Rows(), list[Fault]()
    table = read_table(path, recipe.columns.union(TEXT_FIELDS))
    publisher_columns = recipe.columns.difference(TEXT_FIELDS)
    for row in table.rows:
        if row.value is None:
            faults.append(Fault(row.reason, str(path), row.line))
            continue
        # The recipe's rule converts a row, unless it already has the columns of a record.
        is_record = row.value.keys() >= {"instruction", "output"} and not (
            publisher_columns and publisher_columns <= row.value.keys()
        )
        try:
            record = {name: row.value[name] for name in RECORD_COLUMNS if row.value.get(name)}
            records = [record] if is_record else recipe.rule(row.value)
            rows += [one for one in records if one.get("output", "").strip()]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            needed = ", ".join(sorted(recipe.columns))
            reason = f"A row of {recipe.name} needs {needed} ({type(error).__name__}: {error})."
            faults.append(Fault(reason, str(path), row.line))
    if faults or table.fatal:
        raise InputError(*faults, *table.fatal)
    return rows


@dataclass(frozen=True)
class PartSizes:
    """The largest number of records of each part."""

    pool: int = 2000
    target: int = 100
    heldout: int = 300


def write_transfer(
    folder: Path, transfer: Transfer, sources: Mapping[str, str], sizes: PartSizes, seed: int = 0
) -> list[str]:
    """Write each version of a transfer as a folder of `folder`, such as a home's inbox.

    A version has `pool.jsonl`, `heldout.jsonl` and, for a task, `target.jsonl`. `sources` gives the
    file, folder or hub id of a recipe; the default is the recipe's own hub id.

    Returns:
        The names of the versions. Each is the parent of the next one.

    Raises:
        InputError: A source is missing or unreadable, or a folder of that name exists.
    """
    parts = enumerate(_version_parts(transfer, sources, seed), start=1)
    versions = {f"{transfer.name}-v{number}": sets for number, sets in parts}
    if existing := [folder / name for name in versions if (folder / name).exists()]:
        reason = "The folder exists already. Move it away."
        raise InputError(*(Fault(reason, file=str(path)) for path in existing))
    parents: list[str] = []
    for version, sets in versions.items():
        stated = {"dataset": transfer.name, "version": version, "parents": parents}
        with replace_folder(folder / check_version(version)) as temporary:
            for part, rows in sets.items():
                write_rows(temporary / f"{part}.jsonl", draw_rows(rows, getattr(sizes, part), seed))
            write_text(temporary / VERSION_FILE, yaml.safe_dump(stated, sort_keys=False))
        parents = [version]
    return list(versions)


def _version_parts(
    transfer: Transfer, sources: Mapping[str, str], seed: int
) -> list[dict[str, Rows]]:
    """Return the rows of each version, by part."""

    def split(name: str, part: str) -> Rows:
        return benchmark_rows(find_recipe(name), sources.get(name), part)

    pool, goal = transfer.pool, transfer.goal
    if transfer.stage == "task_specific":
        chosen_from = split(pool, "train")
        if goal == "mt_bench":  # MT-Bench has one split, so its questions are split in halves
            target, heldout = _split_in_halves(split(goal, "test"), _question_of, seed)
        else:
            target, heldout = split(goal, "train"), split(goal, "test")
        return [{"pool": chosen_from, "target": target, "heldout": heldout}]
    if pool == goal:  # two domains without a common topic
        pools, heldouts = (
            _split_in_halves(split(pool, part), _topic_of, seed) for part in ("train", "test")
        )
    else:
        pools, heldouts = ([split(one, part) for one in (pool, goal)] for part in ("train", "test"))
    return [{"pool": p, "heldout": h} for p, h in zip(pools, heldouts, strict=True)]


def _split_in_halves(
    rows: Rows, group: Callable[[dict[str, str]], str], seed: int
) -> tuple[Rows, Rows]:
    """Split rows into two halves, so that no group is in both."""
    names = sorted({group(row) for row in rows})
    random.Random(seed).shuffle(names)
    first = set(names[: len(names) // 2])
    return [r for r in rows if group(r) in first], [r for r in rows if group(r) not in first]


def _topic_of(row: dict[str, str]) -> str:
    return row["input"].partition("\n")[0].partition(" / ")[0]


def _question_of(row: dict[str, str]) -> str:
    name = row.get("source_id") or row.get("id") or row["instruction"]
    return name.rpartition("-turn")[0] or name
