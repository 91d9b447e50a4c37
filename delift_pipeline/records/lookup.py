"""Finding records by what people call them: the record_id, a file's own id, or a prefix."""

from collections.abc import Iterable

import polars as pl

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.versions import PARTS
from delift_pipeline.storage.home import Home

SHOWN = 3


def matching_records(records: pl.DataFrame, names: Iterable[str]) -> dict[str, list[str]]:
    """The record_ids that each name stands for, as a record_id or else as a file's own id.

    Args:
        records: A table with `record_id` and, perhaps, `source_ids`.
        names: record_ids or the file's own ids.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    own = records.filter(pl.col("record_id").is_in(list(found)))["record_id"]
    found |= {record: [record] for record in own}
    unmatched = [name for name, ids in found.items() if not ids]
    if unmatched and "source_ids" in records.columns:
        sources = records.select("record_id", "source_ids").explode("source_ids")
        matches = sources.filter(pl.col("source_ids").is_in(unmatched)).unique(maintain_order=True)
        for record, source in matches.iter_rows():
            found[source].append(record)
    return found


def find_record(
    records: pl.DataFrame,
    name: str,
    none: str = "no record",
    *,
    field: str = "--record",
    prefix: bool = True,
) -> str:
    """The one record_id that a name stands for.

    Args:
        records: A table with `record_id` and, perhaps, `source_ids`.
        name: A record_id, the file's own id or, with `prefix`, the beginning of a record_id.
        none: Subject of the fault when nothing matches, such as `no record of the file`.
        field: The option that the name was given to.
        prefix: Whether the beginning of a record_id is enough.

    Raises:
        Refused: no record matches, or several do.
    """
    found = matching_records(records, [name])[name]
    if not found and prefix:
        starting = records.filter(pl.col("record_id").str.starts_with(name))
        found = starting["record_id"].unique(maintain_order=True).to_list()
    if not found:
        raise Refused(Fault(f"{none} has the id {name!r}", field=field))
    if len(found) > 1:
        shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        reason = f"{name!r} fits {len(found)} records ({shown}): give a record_id"
        raise Refused(Fault(reason, field=field))
    return found[0]


def stored_records(home: Home) -> pl.DataFrame:
    """Every record of every version: record_id, source_ids, copies, version and part.

    Raises:
        Refused: the home has no version.
    """
    paths = {
        path.as_posix(): (version, part)
        for version in home.versions()
        for part in PARTS
        if (path := home.dataset(version) / f"{part}.parquet").is_file()
    }
    if not paths:
        raise Refused(Fault("no version is stored in this home", field="--record"))
    # One scan over all files: hundreds of reads cost seconds.
    scanned = pl.scan_parquet(list(paths), include_file_paths="path", extra_columns="ignore")
    rows = scanned.select("record_id", "source_ids", "copies", "path").collect()
    versions, parts = ({path: pair[i] for path, pair in paths.items()} for i in (0, 1))
    return rows.with_columns(
        version=pl.col("path").replace_strict(versions, return_dtype=pl.String),
        part=pl.col("path").replace_strict(parts, return_dtype=pl.String),
    ).drop("path")


def find_stored_record(home: Home, name: str) -> str:
    """The record_id of a stored record, named by it, by its beginning or by a file's own id.

    Raises:
        Refused: no stored record matches, or several do.
    """
    return find_record(stored_records(home), name, "no record of any version")
