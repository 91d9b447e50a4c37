"""Compute the utility of each record for each other one, with the demo model."""

import tempfile
from pathlib import Path

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.score_file import score_file

records = read_records(Path("tests/frozen/pool.jsonl")).frame.head(8)
with tempfile.TemporaryDirectory() as folder:
    home, out = Home.at(Path(folder)), Path(folder) / "scores.parquet"
    options = ModelOptions(model="demo", template="world")
    score_file(home, records, options, out, SilentProgress())
    scores = pl.read_parquet(out)
# The distance d = ||1 - p|| / sqrt(T) is 0 where the model is certain of all T answer tokens.
distance = pl.col("squared_distance").sqrt().alias("d")
alone = scores.filter(pl.col("demonstration_id").is_null()).select("target_id", alone=distance)
pairs = scores.filter(pl.col("demonstration_id").is_not_null()).join(alone, on="target_id")
best = (
    pairs.select("*", utility=pl.col("alone") - distance).sort("utility", descending=True).head(5)
)
texts = dict(zip(records["record_id"], records["instruction"], strict=True))
for row in best.iter_rows(named=True):
    shown, helped = texts[row["demonstration_id"]], texts[row["target_id"]]
    print(f"{row['utility']:+.3f}  {shown[:32]!r} helps {helped[:32]!r}")
