"""`delift compare`: arms side by side, with paired differences and their standard errors.

Arms of a home by default; with `--experiment` the contenders of an experiment's table.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli.bench_quality import DEFAULT_FOLDER, show_table
from delift_pipeline.cli.lineage import split_adapter
from delift_pipeline.cli.options import HomeOption, JsonOption, print_json
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.formatting import with_error
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.operations.compare import Comparison, Side


def compare(
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="V/ARM V/ARM...",
            help="The first is the reference. With --experiment: its contenders [all].",
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="The table of `delift bench quality --experiment NAME`.")
    ] = None,
    out: Annotated[Path, typer.Option(help="With --experiment: where it was kept.")] = Path(
        DEFAULT_FOLDER
    ),
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluated arms, paired by held-out record, or the contenders of an experiment."""
    if experiment is not None:
        _compare_contenders(out, experiment, arms or [], as_json)
        return
    if not arms:
        raise Refused(Fault("name arms as V/ARM, or an experiment by --experiment", field="arms"))
    from delift_pipeline.operations.compare import compare_arms

    found = compare_arms(Home.at(home), [split_adapter(name) for name in arms])
    if as_json:
        print_json(found.as_json())
        return
    _print_table(found)
    for note in found.notes:
        print(note, file=sys.stderr)


def _compare_contenders(folder: Path, name: str, contenders: list[str], as_json: bool) -> None:
    """Print what an experiment has found, with the page it is shown on.

    Raises:
        Refused: it was not run there, or has no such contender.
    """
    from delift_pipeline.bench.quality import stored_table

    show_table(stored_table(folder, name, contenders), folder / f"{name}.html", as_json)


def _print_table(found: "Comparison") -> None:
    from rich.console import Console
    from rich.table import Table

    from delift_pipeline.evaluation.options import METRICS

    measured = {name for side in found.arms for name in side.metrics}
    metrics = {name: metric for name, metric in METRICS.items() if name in measured}
    table = Table(box=None, pad_edge=False)
    for heading in ("arm", "records", "shared", "held out"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for metric in metrics.values():
        table.add_column(metric.heading, justify="right", no_wrap=True)
        table.add_column("- first", justify="right", no_wrap=True)
    for side in found.arms:
        cells = [cell for name in metrics for cell in _cells(side, name)]
        counts = (side.records, side.shared, side.heldout)
        table.add_row(side.name, *("" if c is None else f"{c:,}" for c in counts), *cells)
    width = None if sys.stdout.isatty() else 400
    Console(width=width).print(table, markup=False)
    for better in ("lower", "higher"):
        named = [metric.heading for metric in metrics.values() if metric.better == better]
        if named:
            print(f"{better} is better: {', '.join(named)}")


def _cells(side: "Side", metric: str) -> tuple[str, str]:
    value, error = side.metrics.get(metric), side.metrics.get(f"{metric}_se")
    gap = side.minus_first.get(metric)
    shown = "" if value is None else with_error(value, error or 0.0, ascii_only=True)
    if gap is None:
        return shown, ""
    return shown, with_error(gap["mean"], gap["se"], sign=True, ascii_only=True)
