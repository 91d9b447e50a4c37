"""What scoring many records takes, said before it begins."""

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import LARGE, Progress
from delift_pipeline.records.schema import TEXT_FIELDS
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

_BATCHES_GIB = 1.5
"""What scoring takes over a model on a CPU where no limit is given."""
# Measured on 100,000 records of 80 characters while they are tokenised.
_BYTES_A_RECORD, _BYTES_A_CHARACTER = 2000, 100


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
    progress.say(
        f"{records.height:,} records: at most {pairs:,} pairs to score, {time}, in about "
        f"{_memory_gib(records, model):,.1f} GiB of memory"
    )


def announce_scoring(records: int, pairs: int, rate: float | None, progress: Progress) -> None:
    """Say of many records how many pairs are about to be scored, and how long that takes."""
    if records <= LARGE:
        return
    known = rate and f"about {duration_text(pairs / rate)} at {rate:,.0f} pairs a second"
    progress.say(f"{pairs:,} pairs to score, {known or 'how long is not known'}")


def _memory_gib(records: pl.DataFrame, model: ModelOptions) -> float:
    """Memory of the weights, of batches, and of the records as tokens."""
    bytes_a_weight = {"4bit": NF4_BYTES, "8bit": INT8_BYTES}.get(
        model.load_in or "", BYTES[model.dtype]
    )
    weights = stored_parameters(weight_files(model_folder(model))) * bytes_a_weight
    characters = sum(int(records[name].str.len_chars().sum()) for name in TEXT_FIELDS)
    tokens = records.height * _BYTES_A_RECORD + characters * _BYTES_A_CHARACTER
    return (weights + tokens) / GIB + (model.memory_limit or _BATCHES_GIB)
