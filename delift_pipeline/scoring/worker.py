"""One of several processes that score a plan: `python -m delift_pipeline.scoring.worker FOLDER`.

The folder holds what `workers` wrote: records, plan and `job.json`. Standard output carries one
JSON document a line (`advance`, `say`, and `report` at the end), standard error the rest. The
process ends when its standard input closes: it never outlives the one that started it. Exit status
as everywhere: 0 done, 1 failed, 2 refused.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delift_pipeline.errors import DeliftError, Refused
from delift_pipeline.progress import Meter

JOB = "job.json"
RECORDS = "records.arrow"
PLAN = "plan"
ORPHANED = 3


class _Channel:
    """Progress that goes to the process that started this one."""

    def __init__(self) -> None:
        # Whatever a library prints must not come between the documents.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **document: Any) -> None:
        """Send one document."""
        self._out.write(json.dumps(document) + "\n")
        self._out.flush()

    def say(self, line: str) -> None:
        """Show one line."""
        self.send(say=line)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter whose advances are sent."""
        yield Meter(lambda amount: self.send(name=name, advance=amount))


def work(folder: Path, channel: _Channel) -> None:
    """Score what this worker can lease of the job, until nothing is missing.

    Raises:
        Refused: the model cannot be used.
        DeliftError: scoring failed.
    """
    import polars as pl

    from delift_pipeline.scoring.model import load_scorer
    from delift_pipeline.scoring.options import ModelOptions
    from delift_pipeline.scoring.plan import read_plan
    from delift_pipeline.scoring.run import score_baseline, score_pairs
    from delift_pipeline.scoring.store import ScoreStore

    job = json.loads((folder / JOB).read_text("utf-8"))
    loaded = load_scorer(ModelOptions.model_validate(job["options"]))
    records = loaded.encoder.encode(pl.read_ipc(folder / RECORDS, memory_map=False))
    store, plan = ScoreStore(Path(job["store"])), read_plan(folder / PLAN)
    report = score_pairs(loaded, store, records, plan, channel)
    if job["baseline"]:
        score_baseline(loaded, store, records, channel)
    channel.send(report=report.as_dict())


def main() -> int:
    """Do the job in the folder that is the one argument; the exit status."""
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    try:
        work(Path(sys.argv[1]), _Channel())
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    except DeliftError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception:
        # The interpreter must not end by itself: the thread above holds standard input.
        traceback.print_exc()
        return 1
    return 0


def _end_with_the_starter() -> None:
    sys.stdin.buffer.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # The thread that waits for the starter reads still; it must not hold up the end.
    os._exit(status)
