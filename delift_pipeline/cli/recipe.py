"""`delift recipe`: convert a benchmark to a file, or a transfer experiment to versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.output import refuse_unwritable_folder

if TYPE_CHECKING:
    from delift_pipeline.records.recipes.read import PartSizes
    from delift_pipeline.records.recipes.table import Transfer


def recipe(
    name: str | None = Argument(
        None,
        help="The name of a benchmark or of a transfer experiment. Without a name, the "
        "command lists all names.",
    ),
    source: list[str] | None = Option(
        None,
        help="The place to read the benchmark from: a file, a folder or a hub id [the hub "
        "id of the benchmark]. For a transfer: RECIPE=PLACE; repeatable.",
    ),
    split: str = Option("train", help="The part of the benchmark: train or test."),
    limit: int | None = Option(
        None,
        min=1,
        help="The greatest number of rows, drawn at random. For a transfer: the greatest "
        "number of records in each pool [all; for a transfer: 2000].",
    ),
    seed: int = Option(0, min=0, help="The seed of the random draw."),
    revision: str | None = Option(
        None, help="The branch, tag or commit to load from the Hugging Face hub."
    ),
    target: int = Option(
        100, min=1, help="For a transfer: the greatest number of records in the target set."
    ),
    heldout: int = Option(
        300, min=1, help="For a transfer: the greatest number of records in each held-out set."
    ),
    out: Path | None = Option(
        None,
        help="The file to write. For a transfer: the folder for the versions, e.g. HOME/inbox.",
    ),
    as_json: bool = shared.AS_JSON,
) -> None:
    """Convert a public benchmark to records.

    A transfer experiment is converted to versions for the inbox. The rows of a benchmark may have
    the columns of its publisher, or the columns of a record (instruction, input, output).

    Example: delift recipe gsm8k --out gsm8k.jsonl
    """
    from delift_pipeline.records.recipes.read import PartSizes, benchmark_rows, write_rows
    from delift_pipeline.records.recipes.table import TRANSFERS, find_recipe

    if name is None:
        _print_list(as_json)
        return
    if out is None:
        raise InputError("no output is named. Pass --out FILE", field="--out")
    if name in TRANSFERS:
        refuse_unwritable_folder(out, "--out")
        sizes = PartSizes(limit or PartSizes.pool, target, heldout)
        facts = _write_transfer(TRANSFERS[name], source or [], out, sizes, seed)
    else:
        shared.check_outputs({"--out": out}, as_json=as_json)
        benchmark = find_recipe(name)
        if source and len(source) > 1:
            raise InputError("a benchmark has one source. Pass --source once", field="--source")
        place = source[0] if source else None
        rows = benchmark_rows(benchmark, place, split, limit=limit, seed=seed, revision=revision)
        write_rows(out, rows)
        about = f"{out}: {len(rows):,} records of {benchmark.title} ({split})"
        facts = {"recipe": name, "records": len(rows), "file": str(out)}
        metrics = benchmark.metrics
        facts |= {"metrics": list(metrics), "said": f"{about}; {_metrics_setting(metrics)}"}
    shared.print_result(as_json, facts, facts["said"], shared.message_stream(out))


def _write_transfer(
    transfer: "Transfer", source: list[str], out: Path, sizes: "PartSizes", seed: int
) -> dict[str, Any]:
    from delift_pipeline.records.recipes.read import write_transfer
    from delift_pipeline.records.recipes.table import find_recipe

    pairs = [item.partition("=") for item in source]
    bad = [recipe for recipe, equals, place in pairs if not equals or not place]
    if bad:
        raise InputError(*(f"{item!r}: write RECIPE=PLACE" for item in bad), field="--source")
    places = {find_recipe(recipe).name: place for recipe, _, place in pairs}
    versions = write_transfer(out, transfer, places, sizes, seed)
    metrics = find_recipe(transfer.goal).metrics
    lines = [str(out / version) for version in versions]
    lines += [f"stage {transfer.stage}; {_metrics_setting(metrics)}", transfer.note]
    facts = {"transfer": transfer.name, "stage": transfer.stage, "versions": versions}
    facts |= {"folder": str(out), "metrics": list(metrics), "note": transfer.note}
    return {**facts, "said": "\n".join(filter(None, lines))}


def _metrics_setting(metrics: Sequence[str]) -> str:
    return f"in arms.yaml: evaluation: {{metrics: [{', '.join(metrics)}]}}"


def _print_list(as_json: bool) -> None:
    from delift_pipeline.records.recipes.table import RECIPES, TRANSFERS

    columns = ("name", "kind", "title", "hub", "metrics", "note")
    recipes, transfers = RECIPES.values(), TRANSFERS.values()
    rows = [(r.name, "benchmark", r.title, r.hub, list(r.metrics), r.note) for r in recipes]
    rows += [
        (t.name, f"transfer ({t.stage})", f"{t.pool} -> {t.goal}", None, [], t.note)
        for t in transfers
    ]
    if as_json:
        shared.print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.console import Console

    table = shared.plain_table()
    for heading in columns:
        table.add_column(heading, no_wrap=heading == "name")
    for name, kind, title, hub, metrics, note in rows:
        table.add_row(name, kind, title, hub or "-", " ".join(metrics), note)
    Console().print(table)
