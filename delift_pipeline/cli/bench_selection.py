"""`delift bench selection`: speed and memory of the engine, beside other libraries."""

import sys
from typing import Annotated, Any

import typer

from delift_pipeline.cli.options import JsonOption, print_json

SHOWN = (
    "n",
    "storage",
    "objective",
    "optimizer",
    "seconds",
    "times_a_read",
    "peak_rss_mib",
    "beyond_kernel_mib",
    "ratio_vs_submodlib",
    "ratio_vs_apricot",
    "same_ranking",
)


def selection(
    full: Annotated[
        bool, typer.Option("--full", help="Add ten million records (14 GiB, minutes).")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small kernels only: does everything run?")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A size, storage, objective or optimizer, e.g. 5000; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns; each figure is a median.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of greedy selection, against submodlib, apricot and one read."""
    from delift_pipeline.bench.selection import chosen_cases, selection_bench
    from delift_pipeline.errors import Fault, Refused

    cases = chosen_cases(full, quick, only or ())
    if not cases:
        raise Refused(Fault(f"no case is called {', '.join(only or ())}", field="--only"))
    found = selection_bench(cases, repeats, lambda text: print(text, file=sys.stderr))
    if as_json:
        print_json(found)
    else:
        _show(found["rows"])


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in SHOWN))
    for row in rows:
        table.add_row(*map(_text, (row[name] for name in SHOWN)))
    Console(width=140).print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
