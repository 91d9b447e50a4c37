"""One cell of a quality experiment: a pool, its subsets under every contender, what they are worth.

A cell is a stage, a pool (seed), a share of wrong answers and a setting. Its result is one JSON
file, so that an interrupted experiment goes on where it stopped.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from delift_pipeline.bench.contenders import Contender
from delift_pipeline.bench.quality_costs import Spent, cost_metrics, spent_on_selection
from delift_pipeline.bench.quality_judge import Jury
from delift_pipeline.bench.quality_measure import Mode, Reading, Subset, measured
from delift_pipeline.bench.quality_pools import (
    NEIGHBOURS,
    Drawn,
    Scores,
    Sizes,
    Wanted,
    draw,
    scored,
)
from delift_pipeline.bench.quality_scorer import DEMO, scorer_options, trained_options
from delift_pipeline.selection.options import Stage
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.storage.home import Home

LEAST_STEPS, STEPS_A_SHARE = 150, 1000
CODE = 3
"""Counted up when a cell's meaning changes."""


@dataclass(frozen=True)
class Setting:
    """How a cell scores and measures.

    Attributes:
        modes: What is done with a subset, see `quality_measure`.
        neighbours: Near prompts that are scored, where a contender reads near pairs only.
        scorer: The scoring model, see `quality_scorer`.
        trained: The model that is trained; another one than the demo model scores for itself.
        template: The prompt template of scoring; training always uses the demo world's own.
        texts: Whether answers are generated and compared as texts, too.
        judge: Who scores the generated answers, or None.
        costs: Whether seconds and floating-point operations are measured, too.
        steps: Optimizer steps by budget where they are not `steps_at`.
    """

    modes: tuple[Mode, ...] = ("lora",)
    neighbours: int = NEIGHBOURS
    scorer: str = DEMO
    trained: str = DEMO
    template: str = "world"
    texts: bool = False
    judge: Jury | None = None
    costs: bool = False
    steps: dict[float, int] = field(default_factory=dict)

    def steps_at(self, budget: float) -> int:
        """Optimizer steps for every subset at a budget, large or small: equal compute."""
        return self.steps.get(budget) or max(LEAST_STEPS, round(STEPS_A_SHARE * budget))

    def asked_steps(self, budget: float) -> int | None:
        """`steps_at` for the demo model; for another one what was set, or the paper's epochs."""
        return self.steps_at(budget) if self.trained == DEMO else self.steps.get(budget)


@dataclass(frozen=True)
class Cell:
    """What is measured together.

    Attributes:
        stage: The stage.
        seed: Of the world, the pool and the training.
        wrong_share: Share of wrong answers in the pool.
        budgets: Shares of the pool.
        contenders: What is compared.
        sizes: Numbers of records.
        setting: How.
    """

    stage: Stage
    seed: int
    wrong_share: float
    budgets: tuple[float, ...]
    contenders: tuple[Contender, ...]
    sizes: Sizes = field(default_factory=Sizes)
    setting: Setting = field(default_factory=Setting)

    @property
    def key(self) -> str:
        """Names what was measured; equal cells have equal keys."""
        setting = asdict(replace(self.setting, judge=None))
        setting |= {"steps": sorted(self.setting.steps.items())}
        setting |= {"judge": self.setting.judge.identity if self.setting.judge else None}
        options = [asdict(one) for one in self.contenders]
        asked = [self.budgets, options, asdict(self.sizes), setting, CODE]
        return f"{self.stage}-{self.seed}-{self.wrong_share:g}-{digest_json(asked)[:12]}"

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Select, use and measure; one row a subset, mode and metric.

        Args:
            folder: The experiment's; scores are kept in it, and found again.

        Returns:
            Rows of selector, mode, budget, draw, metric, value, size, wrong (share in the subset)
            and pairs_per_record.
        """
        import torch

        torch.set_num_threads(1)
        drawn = draw(self.stage, self.seed, self.wrong_share, self.sizes)
        scores = self._scores(folder, drawn)
        subsets = [subset for budget in self.budgets for subset in self._subsets(scores, budget)]
        rows, model = [], trained_options(self.setting.trained)
        jury = self.setting.judge
        reading = Reading(self.setting.texts, partial(jury.scores, folder) if jury else None)
        for mode in self.setting.modes:
            for budget in self.budgets:
                chosen = [subset for subset in subsets if subset.budget == budget]
                steps = self.setting.asked_steps(budget)
                found = measured(drawn, chosen, mode, steps, self.seed, reading, model)
                if self.setting.costs:
                    spent = self._spent(drawn, budget)
                    found += cost_metrics(spent, chosen, drawn, self.setting.steps_at(budget))
                rows += [
                    self._row(drawn, scores, subset, mode, metric, value)
                    for subset, metric, value in found
                ]
        return rows

    def _scores(self, folder: Path, drawn: Drawn) -> Scores:
        wanted = Wanted.of([one.needs(self.stage) for one in self.contenders])
        model = trained_options(self.setting.trained)
        if self.setting.trained == DEMO:
            model = scorer_options(folder, self.setting.scorer, self.setting.template)
        home = Home.at(folder / "home")
        return scored(home, self.key, drawn, wanted, model, self.setting.neighbours)

    def _subsets(self, scores: Scores, budget: float) -> Iterator[Subset]:
        for one in self.contenders:
            for draw_number in range(one.draws):
                ranking = one.ranking(scores.inputs, budget, 1000 * draw_number + self.seed)
                yield Subset(one.name, budget, draw_number, ranking)

    def _spent(self, drawn: Drawn, budget: float) -> Spent:
        near = self.setting.neighbours
        return spent_on_selection(drawn, self.contenders, budget, near, self.seed)

    def _row(
        self, drawn: Drawn, scores: Scores, subset: Subset, mode: str, metric: str, value: float
    ) -> dict[str, Any]:
        wrong = sum(record in drawn.wrong for record in subset.records)
        one = next(one for one in self.contenders if one.name == subset.selector)
        pairs = sum(scores.pairs[block] for block in one.needs(self.stage).blocks)
        return {
            "selector": subset.selector,
            "mode": mode,
            "budget": subset.budget,
            "draw": subset.draw,
            "metric": metric,
            "value": value,
            "size": len(subset.records),
            "wrong": wrong / max(1, len(subset.records)),
            "pairs_per_record": pairs / drawn.pool.height,
        }
