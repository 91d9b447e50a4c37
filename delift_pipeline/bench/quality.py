"""Is a selector worth it? Find the experiments, run one or go on with one, and read its table.

The experiments themselves (the paper's and ours) are in `benchmarks`, beside this package in a
source checkout.

Per stage, pool and share of wrong answers every contender chooses at every budget, each subset is
used (a small LoRA run, or demonstrations), and held-out records are answered. The seed of a pool
draws its world, its records and the runs' starts; one run a subset, since another start moves a
value far less than another pool does. Every cell's rows are kept in a file of their own as soon as
they are there: a run that is killed and started again ends with the same table.
"""

import importlib
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from delift_pipeline.bench.table import table_rows
from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import Refused
from delift_pipeline.core.manifest import git_commit
from delift_pipeline.core.progress import Progress

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds this package: of a source checkout, or the installed packages."""
EXPERIMENT_NAMES = (
    *("selectors", "stages", "budget", "annotation_budget", "tuning"),
    *("objectives", "kernel", "cost", "transfer", "theory"),
)
CHECKOUT_NEEDED = (
    "the experiments are not part of the installed package: clone the project's repository, run "
    "`pip install -e .` in it, and give this command again"
)


class Unit(Protocol):
    """What is measured and kept together; a table reads its `stage` and `wrong_share`, too."""

    @property
    def key(self) -> str:
        """Names what is measured, and the file."""
        ...

    @property
    def seed(self) -> int:
        """The pool's."""
        ...

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Measure; the rows are kept."""
        ...


def load_experiments() -> Any:
    """The module `benchmarks.command`, which plans and runs the experiments.

    It is imported by name, and only here, because an installed package has to work without it.

    Raises:
        Refused: the package is installed without a source checkout.
    """
    if not (CHECKOUT / "benchmarks" / "command.py").is_file():
        raise Refused(CHECKOUT_NEEDED)
    # An editable installation finds the packages of the wheel only.
    # Worker processes take the path over.
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module("benchmarks.command")


def refuse_unknown(name: str) -> None:
    """Refuse an unknown experiment.

    Raises:
        Refused: the name is unknown; the fault lists the experiments.
    """
    if name not in EXPERIMENT_NAMES:
        reason = f"no experiment is called {name!r}; there are {', '.join(EXPERIMENT_NAMES)}"
        raise Refused(reason, field="--experiment")


def run_quality(
    folder: Path,
    name: str,
    units: Sequence[Unit],
    progress: Progress,
    workers: int = 1,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure what is missing and make the table.

    An interrupted experiment goes on from the cells and scores that the folder holds. Each worker
    is a process of one thread. The notes are what a reader of the table has to know.

    Returns:
        `experiment`, `commit`, `commits_of_cells`, `seeds`, `notes` and `rows`; kept in
        `folder`, too, as `table_path`.
    """
    missing = [unit for unit in units if not _result_path(folder, unit).exists()]
    with progress.track("cells", len(units), "cells") as meter:
        meter.advance(len(units) - len(missing))
        if workers == 1 or len(missing) < 2:
            for unit in missing:
                _run_unit(folder, unit)
                meter.advance()
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for done in as_completed(
                    [pool.submit(_run_unit, folder, unit) for unit in missing]
                ):
                    done.result()
                    meter.advance()
    results = [(unit, read_json(_result_path(folder, unit))) for unit in units]
    table = {
        "experiment": name,
        "commit": git_commit(),
        "commits_of_cells": sorted({str(result["commit"]) for _, result in results}),
        "seeds": sorted({unit.seed for unit in units}),
        "notes": list(notes),
        "rows": table_rows([(unit, result["rows"]) for unit, result in results]),
    }
    write_json(table_path(folder, name), table)
    return table


def table_path(folder: Path, name: str) -> Path:
    """Where an experiment's table is kept."""
    return folder / f"{name}.table.json"


def stored_table(folder: Path, name: str, contenders: Sequence[str] = ()) -> dict[str, Any]:
    """An experiment's table as it was kept, all contenders or some.

    Raises:
        Refused: the experiment was not finished there, or has no such contender.
    """
    refuse_unknown(name)
    path = table_path(folder, name)
    if not path.is_file():
        reason = f"{folder} holds no table of {name}: delift bench quality --experiment {name}"
        raise Refused(f"{reason} --out {folder}", field="--experiment")
    table = read_json(path)
    known = dict.fromkeys(row["selector"] for row in table["rows"])
    if unknown := [one for one in contenders if one not in known]:
        reason = f"{name} has no contender {unknown[0]!r}; there are {', '.join(known)}"
        raise Refused(reason, field="arms")
    rows = [row for row in table["rows"] if not contenders or row["selector"] in contenders]
    return {**table, "rows": rows}


def _result_path(folder: Path, unit: Unit) -> Path:
    return folder / "cells" / f"{unit.key}.json"


def _run_unit(folder: Path, unit: Unit) -> None:
    rows = unit.run(folder)
    write_json(_result_path(folder, unit), {"commit": git_commit(), "rows": rows})
