"""Records that are left out of a version: faulty rows, with their faults, and forgotten records.

The home's `forgotten.json` lists the ids of forgotten records with the dates, and no text.
"""

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import read_json, write_json, write_text
from delift_pipeline.core.errors import DeliftError, Fault, fault_count_lines, first_faults
from delift_pipeline.core.home import Home
from delift_pipeline.core.output import is_standard_output, json_text
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.records.tables import STDIN_ARGUMENT, STDIN_PATH

FAULTS_FILE = "faults.jsonl"


def faults_path(out: Path, source: Path) -> Path:
    """Return the file of faults beside an output; for a stream, the first input names it."""
    if is_standard_output(out) or (out.exists() and not out.is_file()):
        name = "stdin" if source in (STDIN_ARGUMENT, STDIN_PATH) else source.resolve().name
        return Path(f"{name}.{FAULTS_FILE}")
    return out.with_name(f"{out.name}.{FAULTS_FILE}")


def write_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Write each fault as one line of JSON: reason, file, line, field."""
    write_text(path, "".join(f"{json_text(asdict(fault))}\n" for fault in faults))


def read_faults(path: Path) -> list[Fault]:
    """Read the faults that `write_faults` wrote, or none if there is no such file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Fault(**json.loads(line)) for line in lines if line]


def left_out_notes(faults: Sequence[Fault], left_out: int, written: Path | None) -> list[str]:
    """Return lines that say how many rows were left out and why; `written` is the faults file."""
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


def forgotten_file(home: Home) -> Path:
    """Return the path of the list of forgotten records."""
    return home.root / "forgotten.json"


def forgotten_ids(home: Home) -> frozenset[str]:
    """Return the ids of the records that were forgotten in a home.

    Raises:
        DeliftError: The list cannot be read. Nothing may be ingested then.
    """
    path = forgotten_file(home)
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(read_json(path)["records"])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path.name} is damaged ({error}). Restore it from a backup before you go on"
        raise DeliftError(reason) from error


def add_forgotten(home: Home, record_ids: Iterable[str]) -> None:
    """Add records to the list of forgotten ones. Those on the list keep their date."""
    path = forgotten_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        forgotten_ids(home)
        known = read_json(path)["records"] if path.is_file() else {}
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        write_json(path, {"records": dict.fromkeys(record_ids, now) | known})


def drop_forgotten(
    home: Home, files: Mapping[str, RecordsFile]
) -> tuple[dict[str, RecordsFile], int]:
    """Return the files without forgotten records, and how many rows were dropped."""
    forgotten = forgotten_ids(home)
    if not forgotten:
        return dict(files), 0
    remaining = {part: _drop_records(file, forgotten) for part, file in files.items()}
    return remaining, sum(files[part].read - file.read for part, file in remaining.items())


def _drop_records(file: RecordsFile, record_ids: frozenset[str]) -> RecordsFile:
    dropped = file.frame["record_id"].is_in(sorted(record_ids))
    if not dropped.any():
        return file
    rows = (~dropped).arg_true().to_list()
    copies = int(file.frame.filter(dropped)["copies"].sum())
    return replace(
        file,
        frame=file.frame.filter(~dropped),
        rows=[file.rows[place] for place in rows],
        raw=None if file.raw is None else [file.raw[place] for place in rows],
        read=file.read - copies,
        folded=file.folded - (copies - int(dropped.sum())),
    )


def has_records(frame: pl.DataFrame, record_ids: Iterable[str]) -> bool:
    """Whether a table has any of the records."""
    return bool(frame["record_id"].is_in(sorted(record_ids)).any())
