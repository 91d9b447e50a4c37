"""`delift run` and `delift ui`: the graph without and with its user interface."""

import os
import sys
import time
from typing import Annotated, Any

import typer

from delift_pipeline.cli.interruption import interruptible
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import HomeOption, JsonOption, print_json, writable_home
from delift_pipeline.storage.home import Home


@takes_model
def run(
    version: Annotated[str, typer.Option(help="The dataset version to materialise.")],
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm to run; repeatable [all that apply].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(envvar="DELIFT_MODEL", help="The model [the version's own]."),
    ] = None,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Materialise a version and its arms through Dagster, in this process.

    Ctrl-C and SIGTERM end it within ten seconds; the next run goes on where it stopped.
    """
    place = writable_home(home)
    with interruptible(place):
        _run(place, version, arm or [], flags.resources(model), as_json)


def _run(
    place: Home, version: str, names: list[str], config: dict[str, Any], as_json: bool
) -> None:
    from rich.console import Console

    from delift_pipeline.cli.graph import (
        Tally,
        materialise_leaderboard,
        refuse_unknown,
        run_version,
        working_instance,
    )
    from delift_pipeline.evaluation.leaderboard import leaderboard_rows, print_leaderboard

    started, tally = time.monotonic(), Tally()
    if sys.stderr.isatty():
        os.environ["DELIFT_PROGRESS_BAR"] = "1"
    refuse_unknown(place, version)
    with working_instance(place) as instance:
        arms = run_version(place, instance, version, names, config, tally)
        materialise_leaderboard(place, instance, {}, tally)
    rows = [row for row in leaderboard_rows(place) if row["version"] == version]
    if not as_json:
        print_leaderboard(rows, Console())
        return
    print_json(
        {
            "version": version,
            "arms": [one.name for one in arms],
            "leaderboard": rows,
            "pairs_scored": tally.pairs_scored,
            "pairs_reused": tally.pairs_reused,
            "runs": tally.runs,
            "seconds": {**tally.seconds, "total": round(time.monotonic() - started, 2)},
        }
    )


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Dagster's port.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="MLflow's port.")] = 5000,
    home: HomeOption = None,
) -> None:
    """Serve Dagster (webserver and daemon) and MLflow on 127.0.0.1 until interrupted."""
    from delift_pipeline.cli.serve import serve

    raise typer.Exit(serve(writable_home(home), port, mlflow_port))
