"""Measure what a subset is worth: a model that uses it answers held-out records.

    lora        LoRA, all subsets of a cell stacked in one batch; a test compares it with PEFT
    qlora, full the same steps by `delift_pipeline.training`, one subset after another
    in_context  no training: the nearest chosen records come before each question

An empty subset (`initial`) is the model before training. In the continual stage every model starts
from one that was trained on the existing records; in context too, by LoRA merged into the base.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from benchmarks.pools import MODEL, StagePool
from delift_pipeline.evaluation.options import EvaluationOptions, MetricName
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.evaluation.result import Evaluation
    from delift_pipeline.scoring.model import LoadedModel
    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.stacked import StackedLora, Weights

Mode = Literal["lora", "qlora", "full", "in_context"]
DEMONSTRATIONS = 5
"""Demonstrations in context, as in the paper."""
FULL_LEARNING_RATE = 1e-3
"""For full fine-tuning, fixed beforehand: adapters need a higher rate than full weights."""
EMBEDDER = "tfidf"
"""The embedding that decides which records are nearest in context."""
BASIC_METRICS: tuple[MetricName, ...] = ("exact_match", "answer_loss")
TEXT_METRICS: tuple[MetricName, ...] = ("rouge1", "rougeL", "squad_f1", "embedding_similarity")
ANSWER_MARGIN = 2
"""How many tokens an answer of a stacked run may be longer than the longest reference."""


@dataclass(frozen=True)
class Subset:
    """One subset: its contender's name, its budget, its draw and its record_ids."""

    selector: str
    budget: float
    draw: int
    records: tuple[str, ...] = field(repr=False)


MetricValues = list[tuple[Subset, str, float]]
"""Each entry: a subset, a metric (with its held-out group) and a value."""


def training_options(
    mode: Mode, steps: int | None, preset: Literal["demo", "paper"] = "demo"
) -> TrainingOptions:
    """Return a preset with another method, and with `steps` if it is not None."""
    values: dict[str, Any] = {"preset": preset, "method": "lora" if mode == "in_context" else mode}
    if mode == "full" and preset == "demo":
        values["learning_rate"] = FULL_LEARNING_RATE
    if steps is not None:
        values["steps"] = steps
    return TrainingOptions.model_validate(values)


@dataclass(frozen=True)
class SubsetEvaluator:
    """Trains on subsets of a pool, or uses them in context, and measures each held-out group.

    Attributes:
        stage_pool: The pool, at one stage.
        seed: The seed of every run's initial weights and order.
        model: The model that is trained; any but the demo model uses the paper's preset.
        texts: Whether generated answers are also compared with the references as texts.
        judge: Returns a judge's scores of a model's samples; None for no judge.
    """

    stage_pool: StagePool
    seed: int
    model: ModelOptions = MODEL
    texts: bool = False
    judge: Callable[[pl.DataFrame], Mapping[str, float]] | None = None

    def measure(self, subsets: Sequence[Subset], mode: Mode, steps: int | None) -> MetricValues:
        """Measure subsets of one budget.

        Args:
            subsets: The chosen subsets.
            mode: How they are used.
            steps: Optimizer steps of each run; None for the paper's epochs, with another model.
        """
        if self.model != MODEL:
            return self._measure_one_by_one(subsets, training_options(mode, steps, "paper"))
        assert steps is not None, "the demo model trains for a number of steps"
        options = training_options(mode, steps)
        if mode == "lora":
            return self._measure_stacked(subsets, options)
        if mode == "in_context":
            return self._measure_in_context(subsets, options)
        return self._measure_one_by_one(subsets, options)

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """The metrics that each evaluation computes."""
        return (*BASIC_METRICS, *(TEXT_METRICS if self.texts else ()))

    def _measure_stacked(self, subsets: Sequence[Subset], options: TrainingOptions) -> MetricValues:
        from delift_pipeline.training.stacked import StackedLora, train

        loaded = demo_model()
        start, examples = (
            self._start_weights(loaded, options),
            examples_of(loaded, self.stage_pool.pool),
        )
        model: Any = loaded.model
        values: MetricValues = []
        for trained in (False, True):
            group = [subset for subset in subsets if bool(subset.records) == trained]
            if not group:
                continue
            seeds = [self.seed] * len(group)
            begin = start and [
                {name: weight.expand(len(group), -1, -1) for name, weight in layer.items()}
                for layer in start
            ]
            if trained:
                sets = [[examples[record] for record in subset.records] for subset in group]
                lora = train(model, sets, seeds, options, begin)
            else:
                lora = StackedLora(model, seeds, options, begin)
                lora.merge()
            for ending, heldout in self.stage_pool.heldout.items():
                values += self._measure_group(loaded, lora, group, ending, heldout)
        return values

    def _start_weights(self, loaded: "LoadedModel", options: TrainingOptions) -> "Weights | None":
        """Return the weights after training on the existing records; None without them."""
        from delift_pipeline.training.stacked import train

        if self.stage_pool.existing is None:
            return None
        known = list(examples_of(loaded, self.stage_pool.existing).values())
        model: Any = loaded.model
        return train(model, [known], [self.seed], options).merge()

    def _measure_group(
        self,
        loaded: "LoadedModel",
        lora: "StackedLora",
        subsets: Sequence[Subset],
        ending: str,
        heldout: pl.DataFrame,
    ) -> MetricValues:
        from delift_pipeline.evaluation.run import evaluate_model
        from delift_pipeline.training.stacked import measure, write_weights

        examples = list(examples_of(loaded, heldout).values())
        results, values = measure(lora, examples), []
        for name, measures in zip(BASIC_METRICS, (results.exact, results.loss), strict=True):
            means = measures.mean(axis=1).tolist()
            values += [(s, name + ending, mean) for s, mean in zip(subsets, means, strict=True)]
        if not self.texts:
            return values
        longest = max(len(example.answer) for example in examples)
        options = EvaluationOptions(metrics=TEXT_METRICS, max_new_tokens=longest + ANSWER_MARGIN)
        scratch: Any = demo_model()
        for run, subset in enumerate(subsets):
            write_weights(scratch.model, lora.merge(), run)
            evaluation = evaluate_model(scratch, heldout, options)
            values += self._values(subset, ending, evaluation, TEXT_METRICS)
        return values

    def _values(
        self, subset: Subset, ending: str, evaluation: "Evaluation", metrics: Sequence[MetricName]
    ) -> MetricValues:
        values = {name: float(evaluation.metrics[name]) for name in metrics}
        opinion = self.judge(evaluation.samples) if self.judge else {}
        return [(subset, name + ending, value) for name, value in {**values, **opinion}.items()]

    def _measure_in_context(
        self, subsets: Sequence[Subset], options: TrainingOptions
    ) -> MetricValues:
        from delift_pipeline.evaluation.run import evaluate_in_context, evaluate_model
        from delift_pipeline.training.stacked import write_weights

        loaded: Any = demo_model()
        evaluation_options = EvaluationOptions(metrics=self.metrics, in_context=DEMONSTRATIONS)
        if (start := self._start_weights(loaded, options)) is not None:
            write_weights(loaded.model, start, 0)

        def ask(subset: Subset, heldout: pl.DataFrame) -> "Evaluation":
            if not subset.records:
                return evaluate_model(loaded, heldout, evaluation_options)
            chosen = self._chosen_records(subset)
            return evaluate_in_context(
                loaded, chosen, heldout, evaluation_options, embedder=EMBEDDER
            )

        return self._evaluate_all(subsets, ask)

    def _chosen_records(self, subset: Subset) -> pl.DataFrame:
        return self.stage_pool.pool.filter(pl.col("record_id").is_in(subset.records))

    def _evaluate_all(
        self, subsets: Sequence[Subset], ask: Callable[[Subset, pl.DataFrame], "Evaluation"]
    ) -> MetricValues:
        values: MetricValues = []
        for ending, heldout in self.stage_pool.heldout.items():
            for subset in subsets:
                evaluation = ask(subset, heldout)
                values += self._values(subset, ending, evaluation, self.metrics)
        return values

    def _measure_one_by_one(
        self, subsets: Sequence[Subset], options: TrainingOptions
    ) -> MetricValues:
        """Train and evaluate each subset alone, as an arm does."""
        from delift_pipeline.evaluation.run import evaluate
        from delift_pipeline.training.run import train

        evaluation_options, values = EvaluationOptions(metrics=self.metrics), []
        with tempfile.TemporaryDirectory() as folder:

            def train_subset(name: str, records: pl.DataFrame, start: Path | None) -> Path:
                out = Path(folder) / name
                out.mkdir()
                train(options, self.model, records, self.seed, out, start)
                return out

            def ask(out: Path | None, _: Subset, heldout: pl.DataFrame) -> "Evaluation":
                return evaluate(self.model, out, heldout, evaluation_options)

            existing = self.stage_pool.existing
            start = None if existing is None else train_subset("existing", existing, None)
            for number, subset in enumerate(subsets):
                out = start
                if subset.records:
                    out = train_subset(str(number), self._chosen_records(subset), start)
                values += self._evaluate_all([subset], partial(ask, out))
        return values


def demo_model() -> "LoadedModel":
    """Load a new copy of the demo model."""
    from delift_pipeline.scoring.model import load_model

    return load_model(MODEL)


def examples_of(loaded: "LoadedModel", records: pl.DataFrame) -> dict[str, "Example"]:
    """Return the tokens of records, by record_id."""
    from delift_pipeline.training.batches import encode_examples

    return {example.record_id: example for example in encode_examples(loaded.encoder, records)[0]}
