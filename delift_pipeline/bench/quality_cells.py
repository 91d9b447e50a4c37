"""One cell of the quality benchmark: a pool, its subsets under every selector, and what they train.

A cell is a stage, a pool (seed) and a share of wrong answers. Its result is one JSON file, so that
an interrupted benchmark goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from delift_pipeline.bench.quality_pools import MODEL, Drawn, Scores, Sizes, draw, scored
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.run import select
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.bench.quality_training import Weights
    from delift_pipeline.training.batches import Example

SELECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "delift": ("delift", {}),
    "delift-published": ("delift", {"diagonal": "keep"}),
    "delift_se-tfidf": ("delift_se", {"embedder": "tfidf"}),
    "delift_trusted": ("delift_trusted", {}),
}
"""What is compared: name in the table -> selector and options. `delift-published` keeps the
diagonal, as the paper's code does."""
NEED_ALL_PAIRS = ("delift", "delift-published")
RANDOM_DRAWS = 3
STEPS: dict[float, int] = {0.1: 150, 0.2: 200, 0.3: 300}
CODE = 1
"""Counted up when a cell's meaning changes."""


@dataclass(frozen=True)
class Cell:
    """What is measured together.

    Attributes:
        stage: The stage.
        seed: Of the world, the pool and the training.
        wrong_share: Share of wrong answers in the pool.
        budgets: Shares of the pool.
        selectors: Names in `SELECTORS`.
        sizes: Numbers of records.
        steps: Optimizer steps by budget.
    """

    stage: Stage
    seed: int
    wrong_share: float
    budgets: tuple[float, ...]
    selectors: tuple[str, ...]
    sizes: Sizes = field(default_factory=Sizes)
    steps: dict[float, int] = field(default_factory=lambda: dict(STEPS))

    @property
    def key(self) -> str:
        """Names what was measured; equal cells have equal keys."""
        options = {name: SELECTORS[name] for name in self.selectors}
        asked = [self.budgets, options, vars(self.sizes), sorted(self.steps.items()), CODE]
        return f"{self.stage}-{self.seed}-{self.wrong_share:g}-{digest_json(asked)[:12]}"


@dataclass(frozen=True)
class Subset:
    """One subset to train on: the name in the table, the budget, the draw and the records."""

    selector: str
    budget: float
    draw: int
    records: tuple[str, ...]


def run_cell(home: Home, cell: Cell) -> list[dict[str, Any]]:
    """Select, train and measure; one row a subset and metric.

    Returns:
        Rows of selector, budget, draw, metric, value, size, wrong (share in the subset) and
        pairs_per_record.
    """
    import torch

    torch.set_num_threads(1)
    drawn = draw(cell.stage, cell.seed, cell.wrong_share, cell.sizes)
    all_pairs = any(name in NEED_ALL_PAIRS for name in cell.selectors)
    scores = scored(home, cell.key, drawn, all_pairs)
    subsets = [
        Subset(name, budget, number, ranking)
        for name in cell.selectors
        for budget in cell.budgets
        for number, ranking in enumerate(_rankings(scores, name, budget, cell.seed))
    ]
    rows = []
    for budget in cell.budgets:
        chosen = [subset for subset in subsets if subset.budget == budget]
        rows += _measured(drawn, scores, chosen, cell, budget)
    return rows


def _rankings(scores: Scores, name: str, budget: float, seed: int) -> list[tuple[str, ...]]:
    selector, options = SELECTORS[name]
    draws = RANDOM_DRAWS if selector == "random" else 1
    return [
        select(scores.inputs, selector, budget, 1000 * draw + seed, options).ranking
        for draw in range(draws)
    ]


def _measured(
    drawn: Drawn, scores: Scores, subsets: list[Subset], cell: Cell, budget: float
) -> list[dict[str, Any]]:
    from delift_pipeline.bench.quality_training import measure, train
    from delift_pipeline.scoring.model import load_model

    loaded = load_model(MODEL)
    model = cast(Any, loaded.model)
    examples = _examples(loaded.encoder, drawn.pool)
    options = TrainingOptions(preset="demo", steps=cell.steps[budget])
    start = None
    if drawn.existing is not None:
        known = [examples[record] for record in drawn.existing["record_id"]]
        start = _repeated(train(model, [known], [cell.seed], options).merge(), len(subsets))
    sets = [[examples[record] for record in subset.records] for subset in subsets]
    lora = train(model, sets, [cell.seed] * len(sets), options, start)
    rows = []
    for group, heldout in drawn.heldout.items():
        asked = list(_examples(loaded.encoder, heldout).values())
        found = measure(lora, asked)
        for name, values in (("exact_match", found.exact), ("answer_loss", found.loss)):
            for subset, value in zip(subsets, values.mean(axis=1).tolist(), strict=True):
                rows.append(_row(drawn, scores, subset, name + group, value))
    return rows


def _examples(encoder: Any, records: pl.DataFrame) -> dict[str, "Example"]:
    from delift_pipeline.training.batches import encode_examples

    return {example.record_id: example for example in encode_examples(encoder, records)[0]}


def _repeated(weights: "Weights", runs: int) -> "Weights":
    return [{name: w.expand(runs, -1, -1) for name, w in layer.items()} for layer in weights]


def _row(drawn: Drawn, scores: Scores, subset: Subset, metric: str, value: float) -> dict[str, Any]:
    wrong = sum(record in drawn.wrong for record in subset.records)
    return {
        "selector": subset.selector,
        "budget": subset.budget,
        "draw": subset.draw,
        "metric": metric,
        "value": value,
        "size": len(subset.records),
        "wrong": wrong / len(subset.records),
        "pairs_per_record": _pairs(scores, subset.selector, drawn) / drawn.pool.height,
    }


def _pairs(scores: Scores, name: str, drawn: Drawn) -> int:
    """Pairs that a selector reads."""
    blocks: Sequence[str] = ()
    if name in NEED_ALL_PAIRS:
        blocks = ("self", "target", "existing")
    elif name == "delift_trusted":
        blocks = ("neighbours", "target")
    return sum(scores.pairs.get(block, 0) for block in blocks)
