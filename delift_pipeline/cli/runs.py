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
from dataclasses import asdict
from functools import partial
from pathlib import Path

import typer
from typer import Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.home import Home, check_version
from delift_pipeline.core.signals import SIGNALS, SignalWatch, exit_status

DEMO_HOME = "delift_demo"
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

    The whole pipeline runs on a first pool. The same arms run on four further pools, so that the
    results are means over five pools.

    Example: delift demo --home ./delift_demo
    """
    from rich.console import Console

    from delift_pipeline.cli.graph import GraphRuns
    from delift_pipeline.demo.pools import POOLS, SEEDS, Pairs, demo_arms, prepare_demo, run_pool
    from delift_pipeline.demo.results import pool_rows, print_stages, stages_json, summarise_pools
    from delift_pipeline.evaluation.leaderboard import PAGE, leaderboard_rows

    started = time.monotonic()
    place = shared.writable_home(home or Path(DEMO_HOME))
    print(f"the demo writes to {place.root}", file=sys.stderr)
    with end_on_signal(place):
        prepare_demo(place)
        with GraphRuns.open(place) as graph:
            for version, arms in demo_arms(place):
                graph.run_version(version, [arm.name for arm in arms], ONE_THREAD)
            graph.refresh_leaderboard()
        pairs, seconds = Pairs(graph.pairs_scored, graph.pairs_reused), dict[str, float]()
        for number, seed in enumerate(SEEDS[1:], start=2):
            print(f"pool {number} of {POOLS}: the same arms", file=sys.stderr, flush=True)
            before = time.monotonic()
            pairs += run_pool(place, seed)
            seconds[f"pool:{seed}"] = round(time.monotonic() - before, 2)
        results = [row for seed in SEEDS for row in pool_rows(place, seed)]
    stages, page = summarise_pools(results), place.leaderboard / PAGE
    figures = graph.figures(started)
    facts = {
        "leaderboard": leaderboard_rows(place),
        "report": str(page),
        "pairs_scored": pairs.scored,
        "pairs_reused": pairs.reused,
        "seconds": seconds | figures["seconds"],
        "stages": stages_json(stages),
        "pools": [asdict(row) for row in results],
    }
    if not as_json:
        print_stages(stages, Console())
    text = (
        f"{pairs.scored:,} pairs scored, {pairs.reused:,} reused from the store, "
        f"{figures['seconds']['total']:.0f} s\nreport on the first pool: {page}\n"
        f"to look at the results: delift ui --home {place.root}"
    )
    shared.print_result(as_json, facts, text)
