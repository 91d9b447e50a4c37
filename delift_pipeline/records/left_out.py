"""What is said of faulty records that were left out, and the file that lists all their faults."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.errors import Fault, fault_count_lines, first_faults
from delift_pipeline.core.output import is_standard_output, json_text
from delift_pipeline.records.tables import STANDARD, STANDARD_INPUT

FAULTS_FILE = "faults.jsonl"


def faults_beside(out: Path, source: Path) -> Path:
    """The file of faults beside an output.

    Args:
        out: The output.
        source: The first input; it names a file in the working directory if `out` is a stream.
    """
    if is_standard_output(out) or (out.exists() and not out.is_file()):
        name = "stdin" if source in (STANDARD, STANDARD_INPUT) else source.resolve().name
        return Path(f"{name}.{FAULTS_FILE}")
    return out.with_name(f"{out.name}.{FAULTS_FILE}")


def write_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Write one JSON object a fault: reason, file, line, field."""
    lines = (json_text(asdict(fault)) + "\n" for fault in faults)
    write_text(path, "".join(lines))


def read_faults(path: Path) -> list[Fault]:
    """The faults of a file that `write_faults` wrote; none where it is not there."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Fault(**json.loads(line)) for line in lines if line]


def left_out_notes(faults: Sequence[Fault], left_out: int, written: Path | None) -> list[str]:
    """How many rows were left out and why, with the first places.

    Args:
        faults: Why, in the order of their places.
        left_out: How many rows.
        written: The file that lists all faults, or None.
    """
    if not left_out:
        return []
    if not faults:  # a version that was stored before faults were kept
        return [f"{left_out:,} faulty rows were left out"]
    place = f"; {written} lists every fault" if written else ""
    return [
        f"{left_out:,} faulty rows were left out{place}; by reason:",
        *fault_count_lines(faults),
        "the first of them:",
        *map(str, first_faults(faults)),
    ]
