"""`delift recipe`: a benchmark of the paper as a file or as versions, by its name."""

from pathlib import Path
from typing import Annotated, Any

import typer

from delift_pipeline.cli.options import JsonOption, check_outputs, message_stream, print_json
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.storage.output import refuse_unwritable_folder


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="A benchmark or a transfer [all are listed].")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A file, folder or hub id, for a transfer RECIPE=PLACE; repeatable "
            "[the benchmark's own hub id]."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="So many rows, drawn.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    revision: Annotated[str | None, typer.Option(help="The hub revision to load.")] = None,
    target: Annotated[int, typer.Option(min=1, help="Transfers: records of the target set.")] = 100,
    heldout: Annotated[int, typer.Option(min=1, help="Transfers: held-out records.")] = 300,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; for a transfer the folder, such as HOME/inbox."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a benchmark's files into records, or a transfer into versions for the inbox.

    A benchmark's row may be in its publishers' columns or in a record's own.
    """
    from delift_pipeline.records.recipes.table import TRANSFERS

    if name is None:
        _list(as_json)
        return
    if out is None:
        raise Refused(Fault("say where to write", field="--out"))
    if name in TRANSFERS:
        refuse_unwritable_folder(out, "--out")
        facts = _transfer(name, source or [], out, (limit, target, heldout), seed)
    else:
        check_outputs({"--out": out}, as_json=as_json)
        facts = _benchmark(name, source or [], split, limit, seed, revision, out)
    print_json(facts) if as_json else print(facts.pop("said"), file=message_stream(out))


def _benchmark(
    name: str,
    source: list[str],
    split: str,
    limit: int | None,
    seed: int,
    revision: str | None,
    out: Path,
) -> dict[str, Any]:
    from delift_pipeline.records.recipes.read import benchmark_rows, write_rows
    from delift_pipeline.records.recipes.table import recipe_of

    asked = recipe_of(name)
    if len(source) > 1:
        raise Refused(Fault("a benchmark has one source", field="--source"))
    place = source[0] if source else None
    rows = benchmark_rows(asked, place, split, limit=limit, seed=seed, revision=revision)
    write_rows(out, rows)
    metrics = ", ".join(asked.metrics)
    return {
        "recipe": name,
        "records": len(rows),
        "file": str(out),
        "metrics": list(asked.metrics),
        "said": f"{out}: {len(rows):,} records of {asked.title} ({split}); in arms.yaml: "
        f"evaluation: {{metrics: [{metrics}]}}",
    }


def _transfer(
    name: str,
    source: list[str],
    out: Path,
    sizes: tuple[int | None, int, int],
    seed: int,
) -> dict[str, Any]:
    from delift_pipeline.records.recipes.table import recipe_of, transfer_of
    from delift_pipeline.records.recipes.transfers import Sizes, write_transfer

    asked = transfer_of(name)
    pairs = [item.partition("=") for item in source]
    bad = [recipe for recipe, equals, place in pairs if not equals or not place]
    if bad:
        raise Refused(*(Fault(f"{item!r}: write RECIPE=PLACE", field="--source") for item in bad))
    places = {recipe_of(recipe).name: place for recipe, _, place in pairs}
    pool, target, heldout = sizes
    wanted = Sizes(pool or Sizes.pool, target, heldout)
    versions = write_transfer(out, asked, places, wanted, seed)
    metrics = recipe_of(asked.goal).metrics
    lines = [f"{out / version}" for version in versions]
    listed = ", ".join(metrics)
    lines.append(f"stage {asked.stage}; in arms.yaml: evaluation: {{metrics: [{listed}]}}")
    return {
        "transfer": name,
        "stage": asked.stage,
        "versions": versions,
        "folder": str(out),
        "metrics": list(metrics),
        "note": asked.note,
        "said": "\n".join(lines + ([asked.note] if asked.note else [])),
    }


def _list(as_json: bool) -> None:
    from delift_pipeline.records.recipes.table import RECIPES, TRANSFERS

    rows = [
        {
            "name": one.name,
            "kind": "benchmark",
            "title": one.title,
            "hub": one.hub,
            "metrics": list(one.metrics),
            "note": one.note,
        }
        for one in RECIPES.values()
    ]
    rows += [
        {
            "name": one.name,
            "kind": f"transfer ({one.stage})",
            "title": f"{one.pool} -> {one.goal}",
            "hub": None,
            "metrics": [],
            "note": one.note,
        }
        for one in TRANSFERS.values()
    ]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "kind", "title", "hub", "metrics", "note"):
        table.add_column(heading, no_wrap=heading == "name")
    for row in rows:
        cells = [row["name"], row["kind"], row["title"], row["hub"] or "-"]
        table.add_row(*cells, " ".join(row["metrics"]), row["note"])
    Console().print(table)
