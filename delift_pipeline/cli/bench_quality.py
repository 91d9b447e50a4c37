"""`delift bench quality`: the experiments, each one command that goes on where it stopped."""

from pathlib import Path
from typing import Any

import typer
from typer import Option

from delift_pipeline.cli.options import JsonOption, check_outputs, print_json, progress
from delift_pipeline.core.output import refuse_unwritable_folder

DEFAULT_FOLDER = "delift_bench"


def quality(
    experiment: str = Option(
        "selectors",
        help="selectors, stages, budget, annotation_budget, tuning, objectives, kernel, cost, "
        "transfer or theory.",
    ),
    quick: bool = Option(False, "--quick", help="2 pools, one budget, 15 % wrong answers."),
    only: list[str] | None = Option(
        None, help="Stages or selectors, with commas or repeated. Random is always compared with."
    ),
    seeds: str | None = Option(
        None, help="Pools, e.g. 500-509 or 500,503 [the experiment's; quick: 500-501]."
    ),
    model: str = Option(
        "demo", help="What tuning trains: demo, a folder, or e.g. facebook/opt-125m."
    ),
    judge: str | None = Option(
        None, help="Who scores the answers of stages: a name at ENDPOINT, or a folder."
    ),
    endpoint: str | None = Option(None, help="The judge's OpenAI-compatible address."),
    judge_mode: str = Option("single", help="single or dimensions."),
    judge_scoring: str = Option("written", help="written or expected."),
    workers: int = Option(2, min=1, help="Processes of one thread each."),
    out: Path = Option(
        Path(DEFAULT_FOLDER), help="Where results are kept; a second call goes on from there."
    ),
    track: bool = Option(True, "--track/--no-track", help="Log the table to MLflow, in OUT/home."),
    markdown: Path | None = Option(None, help="Also write the tables of exact match as Markdown."),
    as_json: JsonOption = False,
) -> None:
    """Compare selectors on pools of the demo world: choose, train or show, answer, compare."""
    from delift_pipeline.bench.quality import load_experiments

    planned = load_experiments().plan(
        experiment,
        only=[name.strip() for given in only or [] for name in given.split(",")],
        seeds=_seeds(seeds),
        quick=quick,
        model=model,
        judge=judge,
        endpoint=endpoint,
        mode=judge_mode,
        scoring=judge_scoring,
    )
    check_outputs({"--markdown": markdown}, as_json=as_json)
    refuse_unwritable_folder(out, "--out")
    table, page = planned.run(out, progress(), workers, markdown=markdown, track=track)
    show_table(table, page, as_json)


def _seeds(given: str | None) -> tuple[int, ...]:
    """`500-502,510` as (500, 501, 502, 510).

    Raises:
        typer.BadParameter: it is written otherwise, or holds no pool.
    """
    if given is None:
        return ()
    seeds: list[int] = []
    try:
        for part in given.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise typer.BadParameter(f"write --seeds 500-509 or 500,503, not {given}") from error
    if not seeds:
        raise typer.BadParameter(f"--seeds {given} holds no pool")
    return tuple(dict.fromkeys(seeds))


def show_table(table: dict[str, Any], page: Path, as_json: bool) -> None:
    """Print an experiment's table: as JSON, or one small table a stage, mode, budget and metric."""
    if as_json:
        print_json({**table, "page": str(page)})
        return
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table

    from delift_pipeline.bench.table import difference_text
    from delift_pipeline.core.formatting import with_error

    console = Console(width=130)
    keys = ("stage", "wrong_share", "mode", "budget", "metric")
    for key, group in groupby(table["rows"], key=lambda row: tuple(row[name] for name in keys)):
        stage, wrong, mode, budget, metric = key
        title = f"{stage}: {metric}, {mode}, {wrong:.0%} wrong answers, budget {budget:.0%}"
        shown = Table("selector", title=title, title_justify="left")
        for column in ("mean", "- random", "- tf-idf", "- delift", "wrong", "pairs"):
            shown.add_column(column, justify="right")
        for row in group:
            shown.add_row(
                row["selector"] + (" *" if row["within_error_of_best"] else ""),
                with_error(row["mean"], row["se"], ascii_only=True),
                *(difference_text(row, o, " not resolved") for o in ("random", "tfidf", "delift")),
                f"{row['wrong_in_subset']:.0%}",
                f"{row['pairs_per_record']:.1f}",
            )
        console.print(shown)
    console.print("means over pools ± one standard error; differences paired by pool; * within one")
    console.print("standard error of the best; wrong: share of wrong answers in the subset; pairs:")
    console.print("scored pairs a record of the pool.")
    for line in (*table["notes"], page):
        print(line)
