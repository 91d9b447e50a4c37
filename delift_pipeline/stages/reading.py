"""What reading a large file takes, said before it is read."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.progress import LARGE, Progress
from delift_pipeline.records.read import Inputs
from delift_pipeline.records.tables import input_files, kind_of
from delift_pipeline.scoring.report import duration_text

MIB = 2**20
_BLOCK = 8 * MIB
# Measured on 60,000 chat records of 387 MB and 100,000 short ones of 12 MB.
_SECONDS_A_BYTE, _SECONDS_A_RECORD = 5e-8, 4e-5
_BYTES_A_BYTE, _BYTES_A_RECORD = 4.6, 1200
_PROGRAM_BYTES = 100 * MIB
# Text of this kind is packed about so much in a compressed file, and in Parquet.
_PACKED = 4
_TYPICAL_RECORD = 500


def announce_reading(parts: Iterable[Inputs | None], progress: Progress) -> None:
    """Say of each large input how long reading it takes and how much memory."""
    for inputs in parts:
        paths = [inputs] if isinstance(inputs, Path) else list(inputs or ())
        # What cannot be read is refused by the reading itself, with everything else that is wrong.
        with suppress(OSError, Refused):
            # Of a pipe nothing can be read twice.
            files = [file for file in input_files(paths)[0] if file.is_file()]
            if files and (said := _announcement(files)):
                progress.say(said)


def _announcement(files: Sequence[Path]) -> str | None:
    counted = [_size_and_records(file) for file in files]
    size, records = sum(one for one, _ in counted), sum(one for _, one in counted)
    if records <= LARGE:
        return None
    seconds = size * _SECONDS_A_BYTE + records * _SECONDS_A_RECORD
    memory = size * _BYTES_A_BYTE + records * _BYTES_A_RECORD + _PROGRAM_BYTES
    stored = sum(file.stat().st_size for file in files)
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (
        f"reading {files[0].name}{more}: about {records:,.0f} records in {stored / 1e6:,.0f} MB, "
        f"about {duration_text(seconds)} and {memory / 2**30:,.1f} GiB of memory"
    )


def _size_and_records(path: Path) -> tuple[float, float]:
    """Bytes of text and records: counted in plain files by line, else estimated."""
    kind = kind_of(path)
    size = path.stat().st_size
    if kind.codec is not None or kind.format == "parquet":
        return size * _PACKED, size * _PACKED / _TYPICAL_RECORD
    if kind.format == "json":
        return size, size / _TYPICAL_RECORD
    with path.open("rb") as handle:
        lines = sum(block.count(b"\n") for block in iter(lambda: handle.read(_BLOCK), b""))
    return size, lines
