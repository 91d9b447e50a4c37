"""One cell of a quality experiment: a pool, its subsets by every contender, and their values.

A cell is a stage, a pool (seed), a share of wrong answers and a setting. Its result is one JSON
file, so an interrupted experiment continues with the next cell.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from benchmarks.contenders import Contender
from benchmarks.costs import cost_metrics
from benchmarks.measure import MetricValues, Mode, Subset, SubsetEvaluator
from benchmarks.pools import MODEL, NEIGHBOURS, Scores, Sizes, draw_pool, score_pool
from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.validation import validate
from delift_pipeline.evaluation.judge.questions import JudgeOptions
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions, read_options
from delift_pipeline.selection.options import Stage

if TYPE_CHECKING:
    from delift_pipeline.evaluation.judge.judges import Judge
    from delift_pipeline.stages.judge import JudgeSetup

SMALL, SMALL_MODEL = "small-1500", Path(__file__).parent / "small_model"
"""The name and the files of a scorer with fewer and narrower layers than the demo model.

It was pretrained like the demo model, in 1,500 steps.
"""
LEAST_STEPS, STEPS_A_SHARE = 150, 1000
CODE = 3
"""Raise this number when the meaning of a cell's result changes."""


@dataclass(frozen=True)
class JudgeConfig:
    """The language model that judges generated answers, and its settings.

    Replies are stored in the experiment's home under the judge's identity. So the judge reads the
    same answer to the same question once, also if the experiment was killed and continues.

    Attributes:
        options: How answers are judged.
        model: The judge's model if it runs on this machine; None for an endpoint.
    """

    options: JudgeOptions
    model: ModelOptions | None

    @classmethod
    def from_name(cls, model: str, endpoint: str | None, **settings: Any) -> "JudgeConfig":
        """Return the configuration of the judge `model`.

        Raises:
            InputError: a setting is out of range.
        """
        options = validate(JudgeOptions, {"model": model, "endpoint": endpoint, **settings})
        return cls(options, None if endpoint else read_options({"model": model, "threads": 1}))

    def scores(self, folder: Path, samples: pl.DataFrame) -> Mapping[str, float]:
        """Return `judge`, the mean score (1 to 5), and `judge_scored`, the share with a score.

        Args:
            folder: The experiment's folder.
            samples: record_id, instruction, input, reference and generated.

        Raises:
            DeliftError: the judge did not reply to a question. The next call asks it again.
        """
        from delift_pipeline.evaluation.judge.questions import questions_for
        from delift_pipeline.evaluation.judge.run import ask_judge
        from delift_pipeline.stages.judge import JudgeSetup

        setup = JudgeSetup(Home.at(folder / "home"), self.options, self.model)
        questions = questions_for(samples, self.options)
        overall = ask_judge(_load_judge(setup), questions, setup.folder).overall
        if overall.failed:
            reason = f"{overall.failed} of {samples.height} questions to the judge failed"
            raise DeliftError(f"{reason}. Start the experiment again; it continues from here")
        mean = {} if overall.mean is None else {"judge": overall.mean}
        return {**mean, "judge_scored": overall.scored / samples.height}


@lru_cache(maxsize=1)
def _load_judge(setup: "JudgeSetup") -> "Judge":
    """Return the judge. A judge that runs on this machine is loaded once in each process."""
    return setup.judge()


@dataclass(frozen=True)
class Setting:
    """How a cell scores and measures.

    Attributes:
        modes: How subsets are used, see `measure`.
        neighbours: How many near prompts are scored, for contenders that read only near pairs.
        scorer: The scoring model: `demo` or `SMALL`.
        trained: The model that is trained: `demo`, a folder or a hub id. A model other than the
            demo model also scores.
        template: The prompt template of scoring; training always uses the demo world's own.
        texts: Whether answers are also generated and compared as texts.
        judge: The judge of the generated answers, or None.
        costs: Whether seconds and floating-point operations are also measured.
        steps: Optimizer steps by budget, instead of the default of `steps_at`.
    """

    modes: tuple[Mode, ...] = ("lora",)
    neighbours: int = NEIGHBOURS
    scorer: str = MODEL_DEMO
    trained: str = MODEL_DEMO
    template: str = "world"
    texts: bool = False
    judge: JudgeConfig | None = None
    costs: bool = False
    steps: dict[float, int] = field(default_factory=dict)

    def steps_at(self, budget: float) -> int:
        """Return the optimizer steps at a budget. Small and large subsets train equally long."""
        return self.steps.get(budget) or max(LEAST_STEPS, round(STEPS_A_SHARE * budget))

    @property
    def trained_model(self) -> ModelOptions:
        """The model that the cell trains."""
        other = self.trained != MODEL_DEMO
        return ModelOptions(model=self.trained, threads=1) if other else MODEL

    @property
    def scoring_model(self) -> ModelOptions:
        """The model that scores the pairs.

        Raises:
            InputError: there is no scorer with that name.
        """
        if self.trained != MODEL_DEMO:
            return self.trained_model
        models = {MODEL_DEMO: MODEL_DEMO, SMALL: str(SMALL_MODEL)}
        if self.scorer not in models:
            raise InputError(f"{self.scorer!r} is not a scorer. Use {' or '.join(models)}")
        return MODEL.model_copy(update={"model": models[self.scorer], "template": self.template})


@dataclass(frozen=True)
class Cell:
    """One pool at one stage, with the contenders that choose from it.

    Attributes:
        stage: The fine-tuning stage.
        seed: The seed of the world, the pool and the training.
        wrong_share: Share of wrong answers in the pool.
        budgets: Shares of the pool.
        contenders: The selectors that are compared.
        sizes: Numbers of records.
        setting: How the cell scores and measures.
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
        """Identifies what is measured; equal cells have equal keys."""
        setting, judge = asdict(replace(self.setting, judge=None)), self.setting.judge
        setting |= {"steps": sorted(self.setting.steps.items())}
        if judge is not None:
            setting |= {"judge": {**judge.options.identity, "mode": judge.options.mode}}
        options = [asdict(one) for one in self.contenders]
        identity = [self.budgets, options, asdict(self.sizes), setting, CODE]
        return f"{self.stage}-{self.seed}-{self.wrong_share:g}-{digest_json(identity)[:12]}"

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Select subsets, use them and measure.

        Args:
            folder: The experiment's folder; scores are stored in it and reused.

        Returns:
            One row for each subset, mode and metric: selector, mode, budget, draw, metric, value,
            size, wrong (share in the subset) and pairs_per_record.
        """
        import torch

        torch.set_num_threads(1)
        setting, rows = self.setting, []
        stage_pool = draw_pool(self.stage, self.seed, self.wrong_share, self.sizes)
        needs = [one.needs(self.stage) for one in self.contenders]
        home = Home.at(folder / "home")
        scores = score_pool(
            home, self.key, stage_pool, needs, setting.scoring_model, setting.neighbours
        )
        subsets = {budget: self._subsets(scores, budget) for budget in self.budgets}
        judge = partial(setting.judge.scores, folder) if setting.judge else None
        evaluator = SubsetEvaluator(
            stage_pool, self.seed, setting.trained_model, setting.texts, judge
        )
        for mode in setting.modes:
            for budget, chosen in subsets.items():
                # Another model trains for the steps in the setting, or for the paper's epochs.
                is_demo = setting.trained == MODEL_DEMO
                steps = setting.steps_at(budget) if is_demo else setting.steps.get(budget)
                values = evaluator.measure(chosen, mode, steps)
                if setting.costs:
                    values += cost_metrics(
                        stage_pool,
                        self.contenders,
                        chosen,
                        setting.neighbours,
                        self.seed,
                        setting.steps_at(budget),
                    )
                rows += self._rows(values, mode, stage_pool.wrong, scores, stage_pool.pool.height)
        return rows

    def _subsets(self, scores: Scores, budget: float) -> list[Subset]:
        subsets = []
        for one in self.contenders:
            for number in range(one.draws):
                ranking = one.ranking(scores.inputs, budget, 1000 * number + self.seed)
                subsets.append(Subset(one.name, budget, number, ranking))
        return subsets

    def _rows(
        self, values: MetricValues, mode: Mode, wrong: frozenset[str], scores: Scores, height: int
    ) -> list[dict[str, Any]]:
        pairs = {
            one.name: sum(scores.pairs[block] for block in one.needs(self.stage).blocks)
            for one in self.contenders
        }
        return [
            {
                "selector": subset.selector,
                "mode": mode,
                "budget": subset.budget,
                "draw": subset.draw,
                "metric": metric,
                "value": value,
                "size": len(subset.records),
                "wrong": len(wrong.intersection(subset.records)) / max(1, len(subset.records)),
                "pairs_per_record": pairs[subset.selector] / height,
            }
            for subset, metric, value in values
        ]
