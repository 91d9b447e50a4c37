"""A warm process that scores on request, each time in a fork that can be killed.

`child.py MODEL FRAME`, then one request a line, `STORE SHARD_SECONDS`. The answers are the fork's
process id and, when it has ended, its status and the pairs scored without and with demonstration.
"""

import os
import sys
from pathlib import Path

import polars as pl
import torch

from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.store import ScoreStore


def score(loaded: LoadedModel, frame: pl.DataFrame, folder: str, seconds: float) -> str:
    """Score all pairs; what was done, as text."""
    records, store = loaded.encoder.encode(frame), ScoreStore(Path(folder))
    alone = score_baseline(loaded, store, records, shard_seconds=seconds)
    plan = PairPlan((PairBlock("self", records.ids, records.ids),))
    report = score_pairs(loaded, store, records, plan, shard_seconds=seconds)
    return f"{alone.pairs_scored} {report.pairs_scored}"


def serve(loaded: LoadedModel, frame: pl.DataFrame) -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        folder, seconds = line.split()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            done = score(loaded, frame, folder, float(seconds))
            os.write(writing, done.encode())
            os._exit(0)
        print(child, flush=True)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            print(status, pipe.read(), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = load_model(ModelOptions(model=sys.argv[1]))
    records_frame = pl.read_ipc(sys.argv[2], memory_map=False)
    print("ready", flush=True)
    serve(model, records_frame)
