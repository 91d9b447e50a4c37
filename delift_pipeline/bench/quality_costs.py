"""What choosing and training cost: processor seconds, and floating-point operations.

    scoring   2 P a token that goes through the model (a multiply and an add a weight)
    LoRA      4 P a token: forward, and backward to the activations; the base has no gradients
    P         the model's weights, the embedding once, as the output head

Attention's products over positions, the adapters' own weights and greedy selection are left out of
the operations: they are small beside it at these lengths. Of a selector that computes more than
pair scores (gradients, hidden states) only the pair scores are counted, but all its seconds are.
Seconds are measured where nothing was scored before; they are a machine's, and differ between runs.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from delift_pipeline.bench.contenders import Contender
from delift_pipeline.bench.quality_measure import (
    Found,
    Subset,
    demo_model,
    examples_of,
    training_options,
)
from delift_pipeline.bench.quality_pools import Drawn, Scores, Wanted, scored
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.scoring.model import LoadedModel

SCORING, LORA = 2, 4
"""Operations a weight and token."""
TIMED_STEPS = 20
"""Steps of one run by which training is timed."""
COSTS = ("selection_seconds", "selection_flops", "training_seconds", "training_flops")


@dataclass(frozen=True)
class Spent:
    """What each contender's choice cost.

    Attributes:
        seconds: Processor seconds by contender: scoring all it reads, and selecting.
        flops: Operations of scoring by contender.
    """

    seconds: dict[str, float]
    flops: dict[str, float]


def spent_on_selection(
    drawn: Drawn, contenders: Sequence[Contender], budget: float, neighbours: int, seed: int
) -> Spent:
    """Score and select once more for each contender by itself, from nothing.

    Args:
        drawn: The pool.
        contenders: Whose choice is timed.
        budget: The share chosen.
        neighbours: Near prompts of each record.
        seed: Of the choice.
    """
    loaded = demo_model()
    seconds, flops = {}, {}
    for one in contenders:
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            wanted = Wanted.of([one.needs(drawn.stage)])
            scores = None
            if one.needs(drawn.stage).blocks or one.needs(drawn.stage).model:
                home = Home.at(Path(folder))
                scores = scored(home, "timed", drawn, wanted, neighbours=neighbours)
            one.ranking(scores.inputs if scores else drawn.inputs(), budget, seed)
            seconds[one.name] = time.process_time() - started
        flops[one.name] = SCORING * _weights(loaded) * _scored_tokens(loaded, drawn, one, scores)
    return Spent(seconds, flops)


def cost_metrics(spent: Spent, subsets: Sequence[Subset], drawn: Drawn, steps: int) -> Found:
    """Rows of `COSTS` for subsets that were trained by LoRA at so many steps."""
    loaded = demo_model()
    examples = examples_of(loaded, drawn.pool)
    found: Found = []
    for subset in subsets:
        values = [spent.seconds[subset.selector], spent.flops[subset.selector], 0.0, 0.0]
        if subset.records:
            chosen = [examples[record] for record in subset.records]
            shown = steps * training_options("lora", steps).records_per_step
            tokens = shown * float(np.mean([len(example) for example in chosen]))
            values[2:] = [_timed(loaded, chosen, steps), LORA * _weights(loaded) * tokens]
        found += [(subset, name, value) for name, value in zip(COSTS, values, strict=True)]
    return found


def _timed(loaded: "LoadedModel", chosen: list[Any], steps: int) -> float:
    from delift_pipeline.training.stacked import train

    started = time.process_time()
    train(cast(Any, loaded.model), [chosen], [0], training_options("lora", TIMED_STEPS))
    return (time.process_time() - started) * steps / TIMED_STEPS


def _weights(loaded: "LoadedModel") -> int:
    return sum(weight.numel() for weight in loaded.model.parameters())


def _scored_tokens(
    loaded: "LoadedModel", drawn: Drawn, one: Contender, scores: Scores | None
) -> float:
    """Tokens through the model: targets pair by pair, each demonstration once, and the baseline."""
    blocks = one.needs(drawn.stage).blocks
    if scores is None or not blocks:
        return 0.0
    frames = [drawn.pool, *([] if drawn.target is None else [drawn.target])]
    lengths = [len(e) for e in examples_of(loaded, pl.concat(frames)).values()]
    pairs = sum(scores.pairs[block] for block in blocks)
    return float(np.mean(lengths)) * (pairs + drawn.pool.height + len(lengths))
