"""Run or resume an experiment on the quality of selectors, and read its table.

The experiments themselves (the paper's and ours) are in the package `benchmarks` of a source
checkout.

For each stage, pool and share of wrong answers, every contender chooses a subset at every budget.
Each subset is used (for a small LoRA run, or as demonstrations), and the model is measured on
held-out records. A pool's seed decides its world, its records and the initial weights of the runs.
Each subset is trained once, because other initial weights change a value far less than another pool
does. The rows of every cell are stored in a file when the cell is done, so a killed run that is
started again ends with the same table.
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
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.manifest import git_commit
from delift_pipeline.core.progress import Progress

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder of this package: a source checkout, or the folder of installed packages."""
EXPERIMENT_NAMES = (
    *("selectors", "stages", "budget", "annotation_budget", "tuning"),
    *("objectives", "kernel", "cost", "transfer", "theory"),
)
CHECKOUT_NEEDED = (
    "the experiments are not part of the installed package. Clone the project's repository, run "
    "`pip install -e .` in it, and run this command again"
)


class Unit(Protocol):
    """What is measured and stored together; a table also reads its `stage` and `wrong_share`."""

    @property
    def key(self) -> str:
        """Identifies what is measured; also the name of the result file."""
        ...

    @property
    def seed(self) -> int:
        """The seed of the pool."""
        ...

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Measure, and return the rows to store."""
        ...


def load_experiments() -> Any:
    """Import the module `benchmarks.command`, which plans and runs the experiments.

    It is imported by name, and only here, because an installed package must work without it.

    Raises:
        InputError: the package is installed without a source checkout.
    """
    if not (CHECKOUT / "benchmarks" / "command.py").is_file():
        raise InputError(CHECKOUT_NEEDED)
    # An editable installation finds only the packages of the wheel. Worker processes inherit the
    # path.
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module("benchmarks.command")


def refuse_unknown(name: str) -> None:
    """Refuse an unknown experiment.

    Raises:
        InputError: the name is unknown; the fault lists the experiments.
    """
    if name not in EXPERIMENT_NAMES:
        reason = f"{name!r} is not an experiment. Choose from: {', '.join(EXPERIMENT_NAMES)}"
        raise InputError(reason, field="--experiment")


def run_quality(
    folder: Path,
    name: str,
    units: Sequence[Unit],
    progress: Progress,
    workers: int = 1,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure what is missing, and write the table.

    An interrupted experiment continues from the cells and scores in the folder. Each worker is a
    process with one thread. The notes say what a reader of the table must know.

    Returns:
        `experiment`, `commit`, `commits_of_cells`, `seeds`, `notes` and `rows`; also stored at
        `table_path`.
    """
    missing = [unit for unit in units if not result_path(folder, unit).exists()]
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
    results = [(unit, read_json(result_path(folder, unit))) for unit in units]
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
    """Return the path of an experiment's table."""
    return folder / f"{name}.table.json"


def stored_table(folder: Path, name: str, contenders: Sequence[str] = ()) -> dict[str, Any]:
    """Read an experiment's table, with all contenders or some.

    Raises:
        InputError: the folder has no such table, or the table has no such contender.
    """
    refuse_unknown(name)
    path = table_path(folder, name)
    if not path.is_file():
        reason = f"{folder} has no table of {name}. Run `delift bench quality --experiment {name}"
        raise InputError(f"{reason} --out {folder}` first", field="--experiment")
    table = read_json(path)
    known = dict.fromkeys(row["selector"] for row in table["rows"])
    if unknown := [one for one in contenders if one not in known]:
        reason = f"{unknown[0]!r} is not a contender of {name}. Choose from: {', '.join(known)}"
        raise InputError(reason, field="arms")
    rows = [row for row in table["rows"] if not contenders or row["selector"] in contenders]
    return {**table, "rows": rows}


def result_path(folder: Path, unit: Unit) -> Path:
    """Return the path of a cell's result."""
    return folder / "cells" / f"{unit.key}.json"


def _run_unit(folder: Path, unit: Unit) -> None:
    rows = unit.run(folder)
    write_json(result_path(folder, unit), {"commit": git_commit(), "rows": rows})
