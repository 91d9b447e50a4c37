"""`delift bench`: is it fast, and is it worth it?"""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from delift_pipeline.cli.options import JsonOption, print_json, progress

app = typer.Typer(help="Measure speed and worth.", no_args_is_help=True)
DEFAULT_FOLDER = "delift_bench"


@app.command("quality")
def quality(
    experiment: Annotated[str, typer.Option(help="What is compared: selectors.")] = "selectors",
    quick: Annotated[
        bool, typer.Option("--quick", help="2 pools, one budget, 15 % wrong answers.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Stages or selectors, with commas or repeated. Random is always compared with."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Pools, e.g. 500-509 or 500,503 [400-409; quick: 500-501].")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 2,
    out: Annotated[
        Path, typer.Option(help="Where results are kept; a second call goes on from there.")
    ] = Path(DEFAULT_FOLDER),
    as_json: JsonOption = False,
) -> None:
    """Train on what each selector chooses from pools of the demo world, and compare."""
    from delift_pipeline.bench.quality import EXPERIMENT, cells, run_quality
    from delift_pipeline.bench.quality_cells import SELECTORS
    from delift_pipeline.errors import Fault, Refused
    from delift_pipeline.selection.options import STAGES, Stage

    if experiment != EXPERIMENT:
        raise Refused(Fault(f"no experiment is called {experiment!r}; there is {EXPERIMENT}"))
    asked = [name.strip() for given in only or [] for name in given.split(",")]
    if unknown := [name for name in asked if name not in (*STAGES, *SELECTORS)]:
        known = ", ".join((*STAGES, *SELECTORS))
        raise Refused(Fault(f"{unknown[0]!r} is no stage or selector: {known}", field="--only"))
    stages = [stage for stage in STAGES if stage in asked] or list(STAGES)
    selectors = [name for name in SELECTORS if name in asked] or list(SELECTORS)
    wanted = cells(cast(list[Stage], stages), _seeds(seeds), selectors, quick)
    result = run_quality(out, wanted, progress(), workers)
    if as_json:
        print_json(result)
    else:
        _show(result["rows"])


def _seeds(given: str | None) -> list[int] | None:
    """`500-502,510` as [500, 501, 502, 510].

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    if given is None:
        return None
    seeds: list[int] = []
    try:
        for part in given.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise typer.BadParameter(f"write --seeds 500-509 or 500,503, not {given}") from error
    return list(dict.fromkeys(seeds))


def _show(rows: list[dict[str, Any]]) -> None:
    """One small table a stage, share of wrong answers, budget and metric."""
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table

    console = Console(width=130)
    keys = ("stage", "wrong_share", "budget", "metric")
    for key, group in groupby(rows, key=lambda row: tuple(row[name] for name in keys)):
        stage, wrong, budget, metric = key
        title = f"{stage}: {metric}, {wrong:.0%} wrong answers, budget {budget:.0%}"
        table = Table(title=title, title_justify="left")
        for column in ("selector", "mean", "- random", "- tf-idf", "- delift", "wrong", "pairs"):
            table.add_column(column, justify="left" if column == "selector" else "right")
        for row in group:
            table.add_row(
                row["selector"] + (" *" if row["within_error_of_best"] else ""),
                _with_error(row["mean"], row["se"]),
                _gap(row["diff_random"], row["diff_se"], row["random_verdict"]),
                _gap(row["diff_tfidf"], row["diff_tfidf_se"], row["tfidf_verdict"]),
                _gap(row["diff_delift"], row["diff_delift_se"], row["delift_verdict"]),
                f"{row['wrong_in_subset']:.0%}",
                f"{row['pairs_per_record']:.1f}",
            )
        console.print(table)
    console.print("means over pools ± one standard error; differences paired by pool; * within one")
    console.print("standard error of the best; wrong: share of wrong answers in the subset; pairs:")
    console.print("scored pairs a record of the pool.")


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _gap(gap: float | None, error: float | None, verdict: str | None) -> str:
    if gap is None:
        return "-"
    said = "" if verdict != "not resolved" else " not resolved"
    return (f"{gap:+.3f}" if error is None else f"{gap:+.3f} ± {error:.3f}") + said
