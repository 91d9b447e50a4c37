"""Say before long work begins how much time and memory it will take."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import LARGE, Progress
from delift_pipeline.records.read import Inputs
from delift_pipeline.records.schema import TEXT_FIELDS
from delift_pipeline.records.tables import file_kind, input_files
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model_files import (
    BYTES,
    GIB,
    INT8_BYTES,
    NF4_BYTES,
    model_folder,
    stored_parameters,
    weight_files,
)
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.report import duration_text, stored_rate
from delift_pipeline.scoring.store import ScoreStore

MIB = 2**20
_BLOCK = 8 * MIB
# Costs of reading per byte of text and per record, measured on 60,000 chat records of 387 MB and
# on 100,000 short records of 12 MB.
_READ_SECONDS_PER_BYTE, _READ_SECONDS_PER_RECORD = 5e-8, 4e-5
_READ_MEMORY_PER_BYTE, _READ_MEMORY_PER_RECORD = 4.6, 1200
_PROGRAM_BYTES = 100 * MIB
# Text is about so many times larger than a compressed file or a Parquet file of it.
_COMPRESSION = 4
_TYPICAL_RECORD_BYTES = 500
_BATCHES_GIB = 1.5
"""Memory that scoring on a CPU takes besides the model, where no limit is given."""
# Memory of the tokens, measured on 100,000 records of 80 characters while they are tokenised.
_TOKEN_MEMORY_PER_RECORD, _TOKEN_MEMORY_PER_CHARACTER = 2000, 100


def announce_reading(parts: Iterable[Inputs | None], progress: Progress) -> None:
    """Say for each large input how long it takes to read and how much memory that needs."""
    for inputs in parts:
        paths = [inputs] if isinstance(inputs, Path) else list(inputs or ())
        # A file that cannot be read is refused later, together with all other faults.
        with suppress(OSError, InputError):
            # A pipe can be read only once, so it is not counted.
            files = [file for file in input_files(paths)[0] if file.is_file()]
            if files and (announcement := _announcement(files)):
                progress.say(announcement)


def _announcement(files: Sequence[Path]) -> str | None:
    counted = [_size_and_records(file) for file in files]
    size, records = sum(one for one, _ in counted), sum(one for _, one in counted)
    if records <= LARGE:
        return None
    seconds = size * _READ_SECONDS_PER_BYTE + records * _READ_SECONDS_PER_RECORD
    memory = size * _READ_MEMORY_PER_BYTE + records * _READ_MEMORY_PER_RECORD + _PROGRAM_BYTES
    stored = sum(file.stat().st_size for file in files)
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return (
        f"reading {files[0].name}{more}: about {records:,.0f} records in {stored / 1e6:,.0f} MB, "
        f"in about {duration_text(seconds)} and {memory / 2**30:,.1f} GiB of memory"
    )


def _size_and_records(path: Path) -> tuple[float, float]:
    """Return the bytes of text and the number of records of a file.

    Records are counted where each has a line of its own, and estimated elsewhere.
    """
    kind = file_kind(path)
    size = path.stat().st_size
    if kind.codec is not None or kind.format == "parquet":
        return size * _COMPRESSION, size * _COMPRESSION / _TYPICAL_RECORD_BYTES
    if kind.format == "json":
        return size, size / _TYPICAL_RECORD_BYTES
    with path.open("rb") as handle:
        lines = sum(block.count(b"\n") for block in iter(lambda: handle.read(_BLOCK), b""))
    return size, lines


def announce_pairs(
    home: Home, records: pl.DataFrame, pairs: int, model: ModelOptions, progress: Progress
) -> None:
    """Say for many records how many pairs are scored at most, and the time and memory they take.

    The time comes from the speed at which stored scores were made. Without such scores the time is
    announced later, after the model is loaded and tried.
    """
    if records.height <= LARGE:
        return
    rate = stored_rate(ScoreStore(home.scores(fingerprint_of(model).digest)))
    time = f"about {duration_text(pairs / rate)}" if rate else "the time is estimated after a trial"
    bytes_each = {"4bit": NF4_BYTES, "8bit": INT8_BYTES}.get(
        model.load_in or "", BYTES[model.dtype]
    )
    weights = stored_parameters(weight_files(model_folder(model))) * bytes_each
    characters = sum(int(records[name].str.len_chars().sum()) for name in TEXT_FIELDS)
    tokens = records.height * _TOKEN_MEMORY_PER_RECORD + characters * _TOKEN_MEMORY_PER_CHARACTER
    memory = (weights + tokens) / GIB + (model.memory_limit or _BATCHES_GIB)
    progress.say(
        f"{records.height:,} records: at most {pairs:,} pairs to score, {time}, in about "
        f"{memory:,.1f} GiB of memory"
    )


def announce_scoring(records: int, pairs: int, rate: float | None, progress: Progress) -> None:
    """Say for many records how many pairs will be scored, and how long that takes."""
    if records <= LARGE:
        return
    duration = rate and f"about {duration_text(pairs / rate)} at {rate:,.0f} pairs a second"
    progress.say(f"{pairs:,} pairs to score, {duration or 'the time is not known'}")
