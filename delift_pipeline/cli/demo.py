"""`delift demo`: the whole pipeline on the embedded example, through the same assets."""

import sys
import time
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delift_pipeline.cli.interruption import interruptible
from delift_pipeline.cli.options import JsonOption, print_json, writable_home
from delift_pipeline.storage.atomic import write_text
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.cli.graph import GraphRuns

DEMO_HOME = "delift_demo"
TEMPLATE = "world"
# The matrices of so small a model are not worth sharing between threads.
ONE_THREAD = {"compute": {"config": {"threads": 1}}}


def demo(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", help=f"The demo's own folder; DELIFT_HOME is not used [./{DEMO_HOME}]."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run all three stages on a synthetic data set with a tiny model, and print the leaderboard."""
    from delift_pipeline.cli.graph import GraphRuns
    from delift_pipeline.evaluation.leaderboard import PAGE, leaderboard_rows

    started = time.monotonic()
    place = writable_home(home or Path(DEMO_HOME))
    print(f"the demo writes to {place.root}", file=sys.stderr)
    with interruptible(place):
        prepare(place)
        with GraphRuns.opened(place) as done:
            materialise(place, done)
    rows, page = leaderboard_rows(place), place.leaderboard / PAGE
    done.seconds["total"] = round(time.monotonic() - started, 2)
    if as_json:
        print_json(
            {
                "leaderboard": rows,
                "report": str(page),
                "seconds": done.seconds,
                "pairs_scored": done.pairs_scored,
                "pairs_reused": done.pairs_reused,
            }
        )
    else:
        show(rows, page, done)


def prepare(home: Home) -> None:
    """Write the demonstration's files and arms, and store both versions; again changes nothing."""
    from delift_pipeline.arms import load_arms
    from delift_pipeline.demo import verify_demo_model
    from delift_pipeline.demo.dataset import FIRST_VERSION, SECOND_VERSION, write_demo_files
    from delift_pipeline.records.versions import ingest
    from delift_pipeline.scoring.options import MODEL_DEMO

    verify_demo_model()
    if not home.arms_file.is_file():
        arms = resources.files("delift_pipeline.demo").joinpath("arms.yaml").read_text("utf-8")
        write_text(home.arms_file, arms)
    load_arms(home)  # A faulty file is refused before anything else is written.
    files = write_demo_files(home.root / "demo_files")
    store = partial(ingest, home, model=MODEL_DEMO, template=TEMPLATE, dataset="demo")
    store(
        files.first_pool,
        version=FIRST_VERSION,
        target=files.first_target,
        heldout=files.first_heldout,
    )
    store(
        files.second_pool,
        version=SECOND_VERSION,
        parents=(FIRST_VERSION,),
        heldout=files.second_heldout,
    )


def materialise(home: Home, runs: "GraphRuns") -> None:
    """Every asset: the first version's two stages, the second version's continual one."""
    from delift_pipeline.arms import load_arms
    from delift_pipeline.demo.dataset import FIRST_VERSION, SECOND_VERSION

    continual = [arm.name for arm in load_arms(home) if arm.stage == "continual"]
    others = [arm.name for arm in load_arms(home) if arm.stage != "continual"]
    runs.run_version(FIRST_VERSION, others, ONE_THREAD)
    runs.run_version(SECOND_VERSION, continual, ONE_THREAD)
    runs.refresh_leaderboard()


def show(rows: list[dict[str, Any]], page: Path, done: "GraphRuns") -> None:
    """Print the leaderboard and where to look next."""
    from rich.console import Console

    from delift_pipeline.evaluation.leaderboard import print_leaderboard

    print_leaderboard(rows, Console())
    print(
        f"{done.pairs_scored:,} pairs scored, {done.pairs_reused:,} found, "
        f"{done.seconds['total']:.0f} s\nreport: {page}\n"
        f"to look around: delift ui --home {page.parents[2]}"
    )
