"""Scores a plan in a process whose address space ends shortly above what it holds.

`short_of_memory.py MODEL FRAME STORE` prints how many batches were halved.
"""

import resource
import sys
from pathlib import Path

import polars as pl
import torch

from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.run import score_pairs
from delift_pipeline.scoring.store import ScoreStore

COPIES = 2048
"""Copies that a product is made to take of its input: memory that a batch needs."""


def costly(product: torch.nn.Module) -> None:
    """Make a product hold many copies of what it reads, so that a tiny model needs memory."""
    plain = product.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        held = hidden.expand(COPIES, *hidden.shape).contiguous()
        return plain(held[0])

    product.forward = forward


def main(model: str, frame: str, folder: str) -> None:
    """Score under the limit."""
    torch.set_num_threads(1)
    loaded = load_model(ModelOptions(model=model, threads=1))
    records = loaded.encoder.encode(pl.read_ipc(frame, memory_map=False))
    engine_for(loaded)
    costly(loaded.model.model.layers[-1].self_attn.o_proj)  # pyright: ignore
    answers = int(records.answer_lengths.sum())
    batch = answers * int(loaded.model.config.hidden_size) * 4 * COPIES
    with open("/proc/self/statm", encoding="ascii") as handle:
        held = int(handle.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + batch // 2, resource.RLIM_INFINITY))
    plan = PairPlan((PairBlock("self", records.ids, records.ids[:1]),))
    report = score_pairs(loaded, ScoreStore(Path(folder)), records, plan)
    print(report.halved)


if __name__ == "__main__":
    main(*sys.argv[1:])
