"""Records that must not come back: `forgotten.json` in the home, ids and dates only."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
from filelock import FileLock

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.records.read import RecordsFile

FORGOTTEN = "forgotten.json"


def forgotten_file(home: Home) -> Path:
    """Where the ids are kept."""
    return home.root / FORGOTTEN


def forgotten_ids(home: Home) -> frozenset[str]:
    """The record_ids that were forgotten in a home.

    Raises:
        DeliftError: the list cannot be read, so that nothing may be ingested.
    """
    path = forgotten_file(home)
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(read_json(path)["records"])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path.name} is damaged ({error}): restore it from a back-up before anything else"
        raise DeliftError(reason) from error


def note_forgotten(home: Home, record_ids: Iterable[str]) -> None:
    """Add records to the list; those on it keep their date."""
    path = forgotten_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        forgotten_ids(home)
        known = read_json(path)["records"] if path.is_file() else {}
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        write_json(path, {"records": dict.fromkeys(record_ids, now) | known})


def without_forgotten(
    home: Home, files: Mapping[str, RecordsFile]
) -> tuple[dict[str, RecordsFile], int]:
    """Files without the records that were forgotten, and how many of their rows that took."""
    gone = forgotten_ids(home)
    if not gone:
        return dict(files), 0
    kept = {part: _kept(file, gone) for part, file in files.items()}
    return kept, sum(files[part].read - file.read for part, file in kept.items())


def _kept(file: RecordsFile, gone: frozenset[str]) -> RecordsFile:
    forgotten = file.frame["record_id"].is_in(sorted(gone))
    if not forgotten.any():
        return file
    places = (~forgotten).arg_true().to_list()
    copies = int(file.frame.filter(forgotten)["copies"].sum())
    return replace(
        file,
        frame=file.frame.filter(~forgotten),
        rows=[file.rows[place] for place in places],
        raw=None if file.raw is None else [file.raw[place] for place in places],
        read=file.read - copies,
        folded=file.folded - (copies - int(forgotten.sum())),
    )


def named_in(frame: pl.DataFrame, record_ids: Iterable[str]) -> bool:
    """Whether a table holds any of the records."""
    return bool(frame["record_id"].is_in(sorted(record_ids)).any())
