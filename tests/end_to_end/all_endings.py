"""End runs in all ways, at all stages, and print what came of it; `make test-endings` runs it.

    python -m tests.end_to_end.all_endings [FOLDER]

The combinations that `test_ended_runs.py` covers are left out.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from tests.end_to_end.endings import Bench, Ending, Program, Stage, Way, play
from tests.end_to_end.test_ended_runs import ENDINGS


def others() -> list[Ending]:
    """All other combinations; those that share a server follow each other."""
    every = itertools.product(
        get_args(Program), (True, False), reversed(get_args(Way)), get_args(Stage)
    )
    return [one for one in (Ending(*values) for values in every) if one not in ENDINGS]


def main(folder: Path) -> int:
    """Print one row a combination; the number of those that failed."""
    bench, failed = Bench(folder), 0
    print("| ending | ended within | and the next run | in all |\n|---|---|---|---|", flush=True)
    try:
        for ending in others():
            started = time.monotonic()
            try:
                ended, result = f"{play(bench, ending):.1f} s", "makes the same bytes"
            except (AssertionError, OSError) as error:
                ended, result, failed = "", f"FAILED: {str(error)[:200]!r}", failed + 1
            seconds = time.monotonic() - started
            print(f"| {ending} | {ended} | {result} | {seconds:.0f} s |", flush=True)
    finally:
        bench.close()
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory(prefix="endings-") as made:
        sys.exit(main(Path(made)))
