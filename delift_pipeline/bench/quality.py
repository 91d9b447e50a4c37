"""Is a selector worth it? Run an experiment of `experiments`, or go on with one.

Per stage, pool and share of wrong answers every contender chooses at every budget, each subset is
used (a small LoRA run, or demonstrations), and held-out records are answered. The seed of a pool
draws its world, its records and the runs' starts; one run a subset, since another start moves a
value far less than another pool does. Every cell's rows are kept in a file of their own as soon as
they are there: a run that is killed and started again ends with the same table.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from delift_pipeline.bench.experiments import Unit, experiment
from delift_pipeline.bench.table import rows_of
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.progress import Progress
from delift_pipeline.storage.atomic import read_json, write_json
from delift_pipeline.storage.manifest import git_commit


def run_quality(
    folder: Path,
    name: str,
    wanted: Sequence[Unit],
    progress: Progress,
    workers: int = 1,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure what is missing and make the table.

    Args:
        folder: Where cells and scores are kept; an interrupted experiment goes on from there.
        name: The experiment's.
        wanted: What is measured.
        progress: Where cells done are shown.
        workers: Processes, one thread each.
        notes: What a reader of the table has to know.

    Returns:
        `experiment`, `commit`, `commits_of_cells`, `seeds`, `notes` and `rows`; kept in
        `folder`, too, as `table_path`.
    """
    missing = [unit for unit in wanted if not _file(folder, unit).exists()]
    with progress.track("cells", len(wanted), "cells") as meter:
        meter.advance(len(wanted) - len(missing))
        if workers == 1 or len(missing) < 2:
            for unit in missing:
                _do(folder, unit)
                meter.advance()
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for done in as_completed([pool.submit(_do, folder, unit) for unit in missing]):
                    done.result()
                    meter.advance()
    found = [(unit, read_json(_file(folder, unit))) for unit in wanted]
    table = {
        "experiment": name,
        "commit": git_commit(),
        "commits_of_cells": sorted({str(kept["commit"]) for _, kept in found}),
        "seeds": sorted({unit.seed for unit in wanted}),
        "notes": list(notes),
        "rows": rows_of([(unit, kept["rows"]) for unit, kept in found]),
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
    experiment(name)
    path = table_path(folder, name)
    if not path.is_file():
        reason = f"{folder} holds no table of {name}: delift bench quality --experiment {name}"
        raise Refused(Fault(f"{reason} --out {folder}", field="--experiment"))
    table = read_json(path)
    known = dict.fromkeys(row["selector"] for row in table["rows"])
    if unknown := [one for one in contenders if one not in known]:
        reason = f"{name} has no contender {unknown[0]!r}; there are {', '.join(known)}"
        raise Refused(Fault(reason, field="arms"))
    rows = [row for row in table["rows"] if not contenders or row["selector"] in contenders]
    return {**table, "rows": rows}


def _file(folder: Path, unit: Unit) -> Path:
    return folder / "cells" / f"{unit.key}.json"


def _do(folder: Path, unit: Unit) -> None:
    rows = unit.run(folder)
    write_json(_file(folder, unit), {"commit": git_commit(), "rows": rows})
