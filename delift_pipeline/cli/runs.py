"""`delift run` and `delift ui`: the graph without and with its user interface."""

import time
from typing import Annotated

import typer

from delift_pipeline.cli.interruption import interruptible
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import (
    HomeOption,
    JsonOption,
    OwnModelOption,
    print_json,
    writable_home,
)


@takes_model
def run(
    version: Annotated[str, typer.Option(help="The dataset version to materialise.")],
    arm: Annotated[
        list[str] | None, typer.Option(help="An arm to run; repeatable [all that apply].")
    ] = None,
    model: OwnModelOption = None,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Materialise a version and its arms through Dagster, in this process.

    Ctrl-C and SIGTERM end it within ten seconds; the next run goes on where it stopped.
    """
    from rich.console import Console

    from delift_pipeline.cli.graph import GraphRuns, refuse_unknown
    from delift_pipeline.evaluation.leaderboard import leaderboard_rows, print_leaderboard

    place, started = writable_home(home), time.monotonic()
    with interruptible(place):
        config = flags.resources(model)
        refuse_unknown(place, version)
        with GraphRuns.opened(place) as done:
            arms = done.run_version(version, arm or [], config)
            done.refresh_leaderboard()
        rows = [row for row in leaderboard_rows(place) if row["version"] == version]
        if not as_json:
            print_leaderboard(rows, Console())
            return
        print_json(
            {
                "version": version,
                "arms": [one.name for one in arms],
                "leaderboard": rows,
                "pairs_scored": done.pairs_scored,
                "pairs_reused": done.pairs_reused,
                "runs": done.runs,
                "seconds": {**done.seconds, "total": round(time.monotonic() - started, 2)},
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
