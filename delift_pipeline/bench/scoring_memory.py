"""Peak memory of scoring over the loaded model, for `bench.scoring`; a program of its own."""

import json
import sys

import torch

from delift_pipeline.bench.scoring import sample_job
from delift_pipeline.bench.scoring_shapes import LENGTHS, random_model, random_records
from delift_pipeline.scoring.transformers_engine import TransformersEngine


def _mib(field: str) -> float:
    """A size in /proc/self/status: of this program alone, where rusage keeps its parent's peak."""
    with open("/proc/self/status", encoding="ascii") as handle:
        line = next(line for line in handle if line.startswith(field))
    return int(line.split()[1]) / 2**10


def main(shape: str, lengths: str, targets: int) -> None:
    """Print `{"peak_rss_mib": ...}`: the peak while scoring less what the loaded model takes."""
    model = random_model(shape, torch.float32, torch.device("cpu"))
    records = random_records(targets, *LENGTHS[lengths], model.config.vocab_size)
    for parameter in model.parameters():
        parameter.sum()
    before = _mib("VmRSS")
    TransformersEngine(model).score(records, [sample_job(records, targets)] * 2)
    print(json.dumps({"peak_rss_mib": max(_mib("VmHWM") - before, 0.0)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
