"""What reading a large file and scoring many records takes, said before it begins."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import polars as pl

from delift_pipeline.core.errors import Refused
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
# Measured on 60,000 chat records of 387 MB and 100,000 short ones of 12 MB.
_SECONDS_A_BYTE, _SECONDS_A_RECORD = 5e-8, 4e-5
_BYTES_A_BYTE, _BYTES_A_RECORD = 4.6, 1200
_PROGRAM_BYTES = 100 * MIB
# Text of this kind is packed about so much in a compressed file, and in Parquet.
_PACKED = 4
_TYPICAL_RECORD = 500
_BATCHES_GIB = 1.5
"""What scoring takes over a model on a CPU where no limit is given."""
# Measured on 100,000 records of 80 characters while they are tokenised.
_SCORING_BYTES_A_RECORD, _SCORING_BYTES_A_CHARACTER = 2000, 100


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
    kind = file_kind(path)
    size = path.stat().st_size
    if kind.codec is not None or kind.format == "parquet":
        return size * _PACKED, size * _PACKED / _TYPICAL_RECORD
    if kind.format == "json":
        return size, size / _TYPICAL_RECORD
    with path.open("rb") as handle:
        lines = sum(block.count(b"\n") for block in iter(lambda: handle.read(_BLOCK), b""))
    return size, lines


def announce_pairs(
    home: Home, records: pl.DataFrame, pairs: int, model: ModelOptions, progress: Progress
) -> None:
    """Say of many records how many pairs are scored at most, and what time and memory they take.

    The time follows from scores that are stored already; without any it is said once the model is
    loaded and tried.
    """
    if records.height <= LARGE:
        return
    rate = stored_rate(ScoreStore(home.scores(fingerprint_of(model).digest)))
    time = f"about {duration_text(pairs / rate)}" if rate else "the time is said after a trial"
    packed = {"4bit": NF4_BYTES, "8bit": INT8_BYTES}.get(model.load_in or "", BYTES[model.dtype])
    weights = stored_parameters(weight_files(model_folder(model))) * packed
    characters = sum(int(records[name].str.len_chars().sum()) for name in TEXT_FIELDS)
    tokens = records.height * _SCORING_BYTES_A_RECORD + characters * _SCORING_BYTES_A_CHARACTER
    memory = (weights + tokens) / GIB + (model.memory_limit or _BATCHES_GIB)
    progress.say(
        f"{records.height:,} records: at most {pairs:,} pairs to score, {time}, in about "
        f"{memory:,.1f} GiB of memory"
    )


def announce_scoring(records: int, pairs: int, rate: float | None, progress: Progress) -> None:
    """Say of many records how many pairs are about to be scored, and how long that takes."""
    if records <= LARGE:
        return
    known = rate and f"about {duration_text(pairs / rate)} at {rate:,.0f} pairs a second"
    progress.say(f"{pairs:,} pairs to score, {known or 'how long is not known'}")
