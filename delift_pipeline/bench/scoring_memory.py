"""Peak memory of scoring over the loaded model, for `bench.scoring`; a program of its own."""

import json
import sys

import torch

from delift_pipeline.bench.scoring import score_twice
from delift_pipeline.bench.scoring_shapes import random_model


def _mib(field: str) -> float:
    """A size in /proc/self/status: of this program alone, where rusage keeps its parent's peak."""
    with open("/proc/self/status", encoding="ascii") as handle:
        line = next(line for line in handle if line.startswith(field))
    return int(line.split()[1]) / 2**10


def main(shape: str, lengths: str, targets: int) -> None:
    """Print `{"peak_rss_mib": ...}`: the peak while scoring less what the loaded model takes."""
    model = random_model(shape, torch.float32, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.sum()
    before = _mib("VmRSS")
    score_twice(model, lengths, targets)
    print(json.dumps({"peak_rss_mib": max(_mib("VmHWM") - before, 0.0)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
