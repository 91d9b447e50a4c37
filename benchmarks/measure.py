"""What a subset is worth: a model trained on it, or shown it, answers held-out records.

    lora        LoRA, all subsets of a cell stacked in one batch; held to PEFT by a test
    qlora, full the same steps by `delift_pipeline.training`, one subset after another
    in_context  no training: the nearest chosen records stand before each question

No record at all (`initial`) is the model before training. In the continual stage every model starts
from one that was trained on the existing records, in context too by LoRA merged into the base.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from benchmarks.pools import MODEL, Drawn
from delift_pipeline.evaluation.options import EvaluationOptions, MetricName
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.evaluation.result import Evaluation
    from delift_pipeline.scoring.model import LoadedModel
    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.stacked import StackedLora, Weights

Mode = Literal["lora", "qlora", "full", "in_context"]
SHOWN = 5
"""Demonstrations in context, as in the paper."""
FULL_LEARNING_RATE = 1e-3
"""Of full fine-tuning, set beforehand: adapters take a higher one than the weights they adapt."""
NEARNESS = "tfidf"
"""Embedding by which the shown records are the nearest."""
PLAIN: tuple[MetricName, ...] = ("exact_match", "answer_loss")
TEXTS: tuple[MetricName, ...] = ("rouge1", "rougeL", "squad_f1", "embedding_similarity")
MARGIN = 2
"""How far past the longest reference an answer of a stacked run may go."""


@dataclass(frozen=True)
class Subset:
    """One subset: the contender's name, the budget, the draw and the record_ids."""

    selector: str
    budget: float
    draw: int
    records: tuple[str, ...] = field(repr=False)


Found = list[tuple[Subset, str, float]]
"""Subset, metric (with its held-out group) and value."""


def training_options(
    mode: Mode, steps: int | None, preset: Literal["demo", "paper"] = "demo"
) -> TrainingOptions:
    """A preset by another method; at so many steps, or as the preset says where that is None."""
    given: dict[str, Any] = {"preset": preset, "method": "lora" if mode == "in_context" else mode}
    if mode == "full" and preset == "demo":
        given["learning_rate"] = FULL_LEARNING_RATE
    if steps is not None:
        given["steps"] = steps
    return TrainingOptions.model_validate(given)


@dataclass(frozen=True)
class Measurement:
    """Uses subsets of a pool and measures each on every held-out group.

    Attributes:
        drawn: The pool.
        seed: Of every run's start and order.
        model: What is trained; another one than the demo model by the paper's preset.
        texts: Whether generated answers are compared with the references as texts, too.
        judge: What a judge says of a model's samples, or None.
    """

    drawn: Drawn
    seed: int
    model: ModelOptions = MODEL
    texts: bool = False
    judge: Callable[[pl.DataFrame], Mapping[str, float]] | None = None

    def of(self, subsets: Sequence[Subset], mode: Mode, steps: int | None) -> Found:
        """Measure subsets of one budget.

        Args:
            subsets: What was chosen.
            mode: What is done with it.
            steps: Optimizer steps of each run; None for the paper's epochs, with another model.
        """
        if self.model != MODEL:
            return self._one_by_one(subsets, training_options(mode, steps, "paper"))
        assert steps is not None, "the demo model trains for a number of steps"
        options = training_options(mode, steps)
        if mode == "lora":
            return self._stacked(subsets, options)
        if mode == "in_context":
            return self._in_context(subsets, options)
        return self._one_by_one(subsets, options)

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """The metrics of evaluation."""
        return (*PLAIN, *(TEXTS if self.texts else ()))

    def _stacked(self, subsets: Sequence[Subset], options: TrainingOptions) -> Found:
        from delift_pipeline.training.stacked import StackedLora, train

        loaded = demo_model()
        start, examples = self._started(loaded, options), examples_of(loaded, self.drawn.pool)
        model: Any = loaded.model
        found: Found = []
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
            for ending, heldout in self.drawn.heldout.items():
                found += self._answered(loaded, lora, group, ending, heldout)
        return found

    def _started(self, loaded: "LoadedModel", options: TrainingOptions) -> "Weights | None":
        """The weights after the existing records; None where there are none."""
        from delift_pipeline.training.stacked import train

        if self.drawn.existing is None:
            return None
        known = list(examples_of(loaded, self.drawn.existing).values())
        model: Any = loaded.model
        return train(model, [known], [self.seed], options).merge()

    def _answered(
        self,
        loaded: "LoadedModel",
        lora: "StackedLora",
        subsets: Sequence[Subset],
        ending: str,
        heldout: pl.DataFrame,
    ) -> Found:
        from delift_pipeline.evaluation.run import evaluate_model
        from delift_pipeline.training.stacked import measure, write_weights

        asked = list(examples_of(loaded, heldout).values())
        values, found = measure(lora, asked), []
        for name, measures in zip(PLAIN, (values.exact, values.loss), strict=True):
            means = measures.mean(axis=1).tolist()
            found += [(s, name + ending, mean) for s, mean in zip(subsets, means, strict=True)]
        if not self.texts:
            return found
        longest = max(len(example.answer) for example in asked)
        options = EvaluationOptions(metrics=TEXTS, max_new_tokens=longest + MARGIN)
        shown: Any = demo_model()
        for run, subset in enumerate(subsets):
            write_weights(shown.model, lora.merge(), run)
            evaluation = evaluate_model(shown, heldout, options)
            found += self._values(subset, ending, evaluation, TEXTS)
        return found

    def _values(
        self, subset: Subset, ending: str, evaluation: "Evaluation", metrics: Sequence[MetricName]
    ) -> Found:
        values = {name: float(evaluation.metrics[name]) for name in metrics}
        opinion = self.judge(evaluation.samples) if self.judge else {}
        return [(subset, name + ending, value) for name, value in {**values, **opinion}.items()]

    def _in_context(self, subsets: Sequence[Subset], options: TrainingOptions) -> Found:
        from delift_pipeline.evaluation.run import evaluate_in_context, evaluate_model
        from delift_pipeline.training.stacked import write_weights

        loaded: Any = demo_model()
        asked = EvaluationOptions(metrics=self.metrics, in_context=SHOWN)
        if (start := self._started(loaded, options)) is not None:
            write_weights(loaded.model, start, 0)

        def ask(subset: Subset, heldout: pl.DataFrame) -> "Evaluation":
            if not subset.records:
                return evaluate_model(loaded, heldout, asked)
            chosen = self._chosen(subset)
            return evaluate_in_context(loaded, chosen, heldout, asked, embedder=NEARNESS)

        return self._evaluated(subsets, ask)

    def _chosen(self, subset: Subset) -> pl.DataFrame:
        return self.drawn.pool.filter(pl.col("record_id").is_in(subset.records))

    def _evaluated(
        self, subsets: Sequence[Subset], ask: Callable[[Subset, pl.DataFrame], "Evaluation"]
    ) -> Found:
        found: Found = []
        for ending, heldout in self.drawn.heldout.items():
            for subset in subsets:
                evaluation = ask(subset, heldout)
                found += self._values(subset, ending, evaluation, self.metrics)
        return found

    def _one_by_one(self, subsets: Sequence[Subset], options: TrainingOptions) -> Found:
        """Training and evaluation as an arm does them, an adapter or a model a subset."""
        from delift_pipeline.evaluation.run import evaluate
        from delift_pipeline.training.run import train

        asked, found = EvaluationOptions(metrics=self.metrics), []
        with tempfile.TemporaryDirectory() as folder:

            def trained(name: str, records: pl.DataFrame, start: Path | None) -> Path:
                out = Path(folder) / name
                out.mkdir()
                train(options, self.model, records, self.seed, out, start)
                return out

            def ask(out: Path | None, _: Subset, heldout: pl.DataFrame) -> "Evaluation":
                return evaluate(self.model, out, heldout, asked)

            existing = self.drawn.existing
            start = None if existing is None else trained("existing", existing, None)
            for number, subset in enumerate(subsets):
                out = start
                if subset.records:
                    out = trained(str(number), self._chosen(subset), start)
                found += self._evaluated([subset], partial(ask, out))
        return found


def demo_model() -> "LoadedModel":
    """The demo model, loaded afresh."""
    from delift_pipeline.scoring.model import load_model

    return load_model(MODEL)


def examples_of(loaded: "LoadedModel", records: pl.DataFrame) -> dict[str, "Example"]:
    """The tokens of records, by record_id."""
    from delift_pipeline.training.batches import encode_examples

    return {example.record_id: example for example in encode_examples(loaded.encoder, records)[0]}
