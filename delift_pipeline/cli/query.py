"""`delift query` and `delift catalog`: read-only SQL over everything stored."""

import csv
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    print_json,
    print_result,
    writable_home,
)
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.csv_rows import csv_cell
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.operations.query import Answer

ROWS_SHOWN = 100


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT; docs/queries.md lists the views.")],
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Comma-separated values with a header.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about records, scores, utilities, subsets, reasons, metrics and lineage in SQL."""
    from delift_pipeline.operations.query import run_query

    if as_csv and as_json:
        raise Refused(Fault("give --json or --csv, not both"))
    answer = run_query(existing(Home.at(home)), sql)
    for line in answer.left_out:
        print(line, file=sys.stderr)
    if as_json:
        print_json(answer.as_json())
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(answer.columns)
        writer.writerows([csv_cell(value) for value in row] for row in answer.rows)
    else:
        _print_table(answer)


def catalog(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make catalog.duckdb anew from the files of the home."""
    from delift_pipeline.operations.catalog import refresh_catalog

    existing(Home.at(home))
    place = writable_home(home)
    made = refresh_catalog(place, anew=True)
    size = place.catalog.stat().st_size
    value = {"path": place.catalog.name, "artifacts": made.sources, "bytes": size}
    text = f"{place.catalog.name}: {made.sources:,} artifacts, {size / 1e6:,.1f} MB"
    print_result(as_json, value, text)


def existing(home: Home) -> Home:
    """The home, if there is one.

    Raises:
        Refused: there is none.
    """
    if not home.root.is_dir():
        reason = f"{home.root} is no home: give --home DIR, or ingest a version first"
        raise Refused(Fault(reason, field="--home"))
    return home


def _print_table(answer: "Answer") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in answer.columns:
        table.add_column(Text(name), overflow="fold")
    for row in answer.rows[:ROWS_SHOWN]:
        table.add_row(*(Text(_visible(csv_cell(value))) for value in row))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    more = len(answer.rows) - ROWS_SHOWN
    if more > 0:
        print(f"and {more:,} more rows (--csv and --json give all)", file=sys.stderr)


def _visible(text: str) -> str:
    """Text without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
