"""Chosen records back into a file, as they came."""

from collections.abc import Sequence
from pathlib import Path

from delift_pipeline.errors import DeliftError
from delift_pipeline.records.json_rows import JSON_LINES
from delift_pipeline.records.read import RecordsFile
from delift_pipeline.records.tables import FORMATS, compress, kind_of
from delift_pipeline.storage.output import is_standard_output, write_output


def write_chosen(
    path: Path, file: RecordsFile, record_ids: Sequence[str], source: Path | None = None
) -> None:
    """Write the original rows of `record_ids`, unchanged, in that order.

    The format follows the suffix of `path`, JSON Lines where it says nothing; `.gz` and `.zst`
    compress. From JSON Lines to JSON Lines the lines' own text is kept. What Parquet holds and text
    formats do not is written as `json_text.plain` says; Parquet to Parquet keeps every type. Equal
    input gives equal bytes.

    Args:
        path: Where to write: a file, a pipe or device, or `-` for standard output.
        file: The records and their rows.
        record_ids: Which of them, in the order to write.
        source: The file they were read from. Standard output takes its format where that is text.

    Raises:
        DeliftError: an id is not in the file, or the rows do not fit the format.
    """
    places = {record: at for at, record in enumerate(file.frame["record_id"])}
    if lost := [record for record in record_ids if record not in places]:
        raise DeliftError(f"{len(lost)} chosen records are not in the file, the first {lost[0]}")
    chosen = [places[record] for record in record_ids]
    kind = kind_of(path)
    name = kind.format
    if name is None and source is not None and is_standard_output(path):
        name = kind_of(source).format
        name = None if name == "parquet" else name
    form = FORMATS[name or "jsonl"]
    if form is JSON_LINES and file.raw is not None:
        data = "".join(f"{file.raw[at]}\n" for at in chosen).encode("utf-8")
    else:
        data = form.write([file.rows[at] for at in chosen], file.schema)
    write_output(path, compress(data, kind.codec))
