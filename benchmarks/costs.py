"""Measure the costs of selection and training: processor seconds and floating-point operations.

    scoring   2 P per token that the model reads (a multiplication and an addition per weight)
    LoRA      4 P per token: forward, and backward to the activations; the base has no gradients
    P         number of the model's weights, with the embedding once, as the output head

Operations leave out attention over positions, the adapters' weights and greedy selection, which are
small in comparison at these lengths. For a selector that computes more than pair scores (gradients,
hidden states), only the pair scores are counted as operations, but all its seconds are measured.
Seconds are measured without stored scores. They depend on the machine and differ between runs.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Contender
from benchmarks.measure import MetricValues, Subset, demo_model, examples_of, training_options
from benchmarks.pools import StagePool, score_pool
from delift_pipeline.core.home import Home

if TYPE_CHECKING:
    from delift_pipeline.training.batches import Example

SCORING, LORA = 2, 4
"""Operations per weight and token."""
TIMED_STEPS = 20
"""How many steps are run to time training."""
COSTS = ("selection_seconds", "selection_flops", "training_seconds", "training_flops")


def cost_metrics(
    stage_pool: StagePool,
    contenders: Sequence[Contender],
    subsets: Sequence[Subset],
    neighbours: int,
    seed: int,
    steps: int,
) -> MetricValues:
    """Measure `COSTS` for subsets of one budget that were trained with LoRA.

    Args:
        stage_pool: The pool, at one stage.
        contenders: The contenders; each scores and selects once more, without stored scores.
        subsets: The subsets that they chose.
        neighbours: Number of near prompts of each record.
        seed: The seed of selection.
        steps: Optimizer steps of training.
    """
    from delift_pipeline.training.stacked import train

    loaded = demo_model()
    model: Any = loaded.model
    weights = sum(weight.numel() for weight in model.parameters())
    examples, pool = (
        examples_of(loaded, stage_pool.scored_records),
        examples_of(loaded, stage_pool.pool),
    )
    budget = subsets[0].budget
    selection_costs = {
        one.name: _selection_cost(stage_pool, examples, one, budget, neighbours, seed)
        for one in contenders
    }
    metric_values: MetricValues = []
    for subset in subsets:
        seconds, tokens = selection_costs[subset.selector]
        values = [seconds, SCORING * weights * tokens, 0.0, 0.0]
        if subset.records:
            chosen = [pool[record] for record in subset.records]
            records_read = steps * training_options("lora", steps).records_per_step
            started = time.process_time()
            train(model, [chosen], [0], training_options("lora", TIMED_STEPS))
            values[2] = (time.process_time() - started) * steps / TIMED_STEPS
            values[3] = LORA * weights * records_read * mean(len(example) for example in chosen)
        metric_values += [(subset, name, value) for name, value in zip(COSTS, values, strict=True)]
    return metric_values


def _selection_cost(
    stage_pool: StagePool,
    examples: "Mapping[str, Example]",
    contender: Contender,
    budget: float,
    neighbours: int,
    seed: int,
) -> tuple[float, float]:
    """Return the processor seconds of one contender's selection, and the tokens the model read.

    The tokens are those of the target in every pair, of each demonstration once, and of the
    baseline.
    """
    needs = contender.needs(stage_pool.stage)
    with tempfile.TemporaryDirectory() as folder:
        started, inputs, pairs = time.process_time(), stage_pool.inputs(), {}
        if needs.blocks or needs.model:
            scores = score_pool(
                Home.at(Path(folder)), "timed", stage_pool, [needs], neighbours=neighbours
            )
            inputs, pairs = scores.inputs, scores.pairs
        contender.ranking(inputs, budget, seed)
        seconds = time.process_time() - started
    if not needs.blocks:
        return seconds, 0.0
    scored_pairs = sum(pairs[block] for block in needs.blocks)
    length = mean(len(example) for example in examples.values())
    return seconds, length * (scored_pairs + stage_pool.pool.height + len(examples))
