"""`delift run`, `delift demo` and `delift ui`: run the graph, without or with a user interface.

Runs in this process end within ten seconds of SIGINT or SIGTERM.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path

import typer
from typer import Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.home import Home, check_version
from delift_pipeline.core.signals import SIGNALS, SignalWatch, exit_status

DEMO_HOME = "delift_demo"
DEMO_TEMPLATE = "world"
# The matrices of the demo model are so small that more threads would slow it down.
ONE_THREAD = {"compute": {"config": {"threads": 1}}}
INTERRUPTED_NOTE = (
    "interrupted: finished work is stored; run the same command again to continue from there"
)


@shared.with_model_flags
def run(
    version: str = Option(..., help="The dataset version to run."),
    arm: list[str] | None = Option(
        None, help="An arm to run; repeatable [all enabled arms that apply to the version]."
    ),
    model: str | None = shared.OWN_MODEL,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Score, select, train and evaluate a dataset version.

    Dagster runs in this process. Ctrl-C and SIGTERM end the run within ten seconds. The next run
    does the rest of the work.

    Example: delift run --version mydata-v1
    """
    from rich.console import Console

    from delift_pipeline.cli.graph import GraphRuns
    from delift_pipeline.evaluation.leaderboard import leaderboard_rows, print_leaderboard
    from delift_pipeline.records.inbox import find_entry
    from delift_pipeline.records.stored import version_manifest

    place, started = shared.writable_home(home), time.monotonic()
    with end_on_signal(place):
        config = flags.resources(model)
        if find_entry(place, check_version(version)) is None:
            version_manifest(place, version)  # Refuses an unknown version before any writing.
        with GraphRuns.open(place) as graph:
            arms = graph.run_version(version, arm or [], config)
            graph.refresh_leaderboard()
        rows = [row for row in leaderboard_rows(place) if row["version"] == version]
        if not as_json:
            print_leaderboard(rows, Console())
            print(f"prompt template: {graph.template}")
            return
        facts = {"version": version, "arms": [one.name for one in arms], "leaderboard": rows}
        facts["template"] = graph.template
        facts |= {"runs": graph.runs, **graph.figures(started)}
        shared.print_json(facts)


def ui(
    port: int = Option(3000, min=1, max=65535, help="The port of Dagster."),
    mlflow_port: int = Option(5000, min=1, max=65535, help="The port of MLflow."),
    home: Path | None = shared.HOME,
) -> None:
    """Serve the user interfaces of Dagster and MLflow.

    They are served on 127.0.0.1 until Ctrl-C.

    Example: delift ui --port 3001
    """
    from delift_pipeline.cli.serve import serve

    serve(shared.writable_home(home), port, mlflow_port)


@contextmanager
def end_on_signal(home: Home) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the work inside. On a terminal the work shows a progress bar.

    The work gets some seconds to end in order. After them, or at a second signal, the process ends
    anyway.

    Raises:
        typer.Exit: a signal came, or the user cancelled the run. The status is 130 or 143.
    """
    if sys.stderr.isatty():
        os.environ["DELIFT_PROGRESS_BAR"] = "1"
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {sign: signal.signal(sign, signal.default_int_handler) for sign in SIGNALS}
    try:
        with SignalWatch(before_exit=partial(_cancel_runs, home)) as watch:
            try:
                yield
            except BaseException as error:
                # A library may turn an interrupt into an error of its own.
                if not isinstance(error, KeyboardInterrupt) and watch.received is None:
                    raise
                # A repeated signal must not stop the clean-up. The watch still receives it.
                for sign in SIGNALS:
                    signal.signal(sign, lambda *_: None)
                _cancel_runs(home)
                raise typer.Exit(exit_status(watch.wait(seconds=1.0))) from None
    finally:
        for sign, handler in previous.items():
            signal.signal(sign, handler)


def _cancel_runs(home: Home) -> None:
    """Tell the user what to do next, and cancel the runs of this process."""
    print(INTERRUPTED_NOTE, file=sys.stderr, flush=True)
    if not (home.dagster / "dagster.yaml").is_file():
        return
    import dagster as dg

    from delift_pipeline.orchestration.dagster_internals import cancel_own_runs

    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        cancel_own_runs(instance)


def demo(
    home: Path | None = Option(
        None,
        "--home",
        help=f"The folder for the results of the demo [./{DEMO_HOME}]. DELIFT_HOME is ignored.",
    ),
    as_json: bool = shared.AS_JSON,
) -> None:
    """Run all three fine-tuning stages on synthetic data.

    The demo uses the tiny model inside the package, and prints the results.

    Example: delift demo --home ./delift_demo
    """
    from rich.console import Console

    from delift_pipeline.cli.graph import GraphRuns
    from delift_pipeline.demo.dataset import FIRST_VERSION, SECOND_VERSION
    from delift_pipeline.evaluation.leaderboard import PAGE, leaderboard_rows, print_leaderboard
    from delift_pipeline.stages.arms import load_arms

    started = time.monotonic()
    place = shared.writable_home(home or Path(DEMO_HOME))
    print(f"the demo writes to {place.root}", file=sys.stderr)
    with end_on_signal(place):
        prepare_demo(place)
        arms = load_arms(place)
        with GraphRuns.open(place) as graph:
            others = [arm.name for arm in arms if arm.stage != "continual"]
            graph.run_version(FIRST_VERSION, others, ONE_THREAD)
            continual = [arm.name for arm in arms if arm.stage == "continual"]
            graph.run_version(SECOND_VERSION, continual, ONE_THREAD)
            graph.refresh_leaderboard()
    rows, page, figures = leaderboard_rows(place), place.leaderboard / PAGE, graph.figures(started)
    facts = {"leaderboard": rows, "report": str(page), **figures}
    if not as_json:
        print_leaderboard(rows, Console())
    text = (
        f"{graph.pairs_scored:,} pairs scored, {graph.pairs_reused:,} reused from the store, "
        f"{figures['seconds']['total']:.0f} s\nreport: {page}\n"
        f"to look at the results: delift ui --home {place.root}"
    )
    shared.print_result(as_json, facts, text)


def prepare_demo(home: Home) -> None:
    """Write the demo's files and arms, and store its versions. A second call changes nothing."""
    from delift_pipeline.demo import verify_demo_model
    from delift_pipeline.demo.dataset import FIRST_VERSION, SECOND_VERSION, write_demo_files
    from delift_pipeline.records.versions import ingest
    from delift_pipeline.scoring.options import MODEL_DEMO
    from delift_pipeline.stages.arms import load_arms

    verify_demo_model()
    if not home.arms_file.is_file():
        arms = resources.files("delift_pipeline.demo").joinpath("arms.yaml").read_text("utf-8")
        write_text(home.arms_file, arms)
    load_arms(home)  # Refuses a faulty file before anything else is written.
    files = write_demo_files(home.root / "demo_files")
    store = partial(ingest, home, model=MODEL_DEMO, template=DEMO_TEMPLATE, dataset="demo")
    targets, first = files.first_target, files.first_heldout
    store(files.first_pool, version=FIRST_VERSION, target=targets, heldout=first)
    second, parents = files.second_heldout, (FIRST_VERSION,)
    store(files.second_pool, version=SECOND_VERSION, parents=parents, heldout=second)
