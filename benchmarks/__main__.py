"""`python -m benchmarks`: every benchmark that needs no options, as `delift bench` runs it."""

import sys

from delift_pipeline.cli.main import run

BENCHMARKS = (["bench", "scoring", "--json"], ["bench", "selection", "--json"])


def main() -> int:
    """Run the benchmarks in turn, and return the exit status of the first one that fails."""
    for arguments in BENCHMARKS:
        if status := run(list(arguments)):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
