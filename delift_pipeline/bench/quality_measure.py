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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import polars as pl

from delift_pipeline.bench.quality_pools import MODEL, Drawn
from delift_pipeline.evaluation.options import EvaluationOptions, MetricName
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.evaluation.result import Evaluation
    from delift_pipeline.scoring.model import LoadedModel
    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.stacked import StackedLora, Weights

Mode = Literal["lora", "qlora", "full", "in_context"]
METHODS: tuple[Mode, ...] = ("lora", "qlora", "full")
Preset = Literal["demo", "paper"]
SHOWN = 5
"""Demonstrations in context, as in the paper."""
FULL_LEARNING_RATE = 1e-3
"""Of full fine-tuning, set beforehand: adapters take a higher one than the weights they adapt."""
NEARNESS = "tfidf"
"""Embedding by which the shown records are the nearest."""
PLAIN: tuple[MetricName, ...] = ("exact_match", "answer_loss")
TEXTS: tuple[MetricName, ...] = ("rouge1", "rougeL", "squad_f1", "embedding_similarity")


@dataclass(frozen=True)
class Subset:
    """One subset: the contender's name, the budget, the draw and the record_ids."""

    selector: str
    budget: float
    draw: int
    records: tuple[str, ...] = field(repr=False)


Found = list[tuple[Subset, str, float]]
"""Subset, metric (with its held-out group) and value."""
Opinion = Callable[[pl.DataFrame], Mapping[str, float]]
"""What a judge says of a model's samples (`Jury.scores`)."""


@dataclass(frozen=True)
class Reading:
    """What is read off the answers beside exact match and answer loss.

    Attributes:
        texts: Whether generated answers are compared with the references as texts.
        judge: Who scores them, or None.
    """

    texts: bool = False
    judge: Opinion | None = None

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """The metrics of evaluation."""
        return (*PLAIN, *(TEXTS if self.texts else ()))

    def opinion(self, samples: pl.DataFrame) -> Mapping[str, float]:
        """The judge's metrics; none where nobody judges."""
        return self.judge(samples) if self.judge else {}


PLAINLY = Reading()


def training_options(mode: Mode, steps: int | None, preset: Preset = "demo") -> TrainingOptions:
    """A preset by another method; at so many steps, or as the preset says where that is None."""
    given: dict[str, Any] = {"preset": preset, "method": mode if mode in METHODS else "lora"}
    if mode == "full" and preset == "demo":
        given["learning_rate"] = FULL_LEARNING_RATE
    if steps is not None:
        given["steps"] = steps
    return TrainingOptions.model_validate(given)


def measured(
    drawn: Drawn,
    subsets: Sequence[Subset],
    mode: Mode,
    steps: int | None,
    seed: int,
    reading: Reading = PLAINLY,
    model: ModelOptions = MODEL,
) -> Found:
    """Use subsets of one budget and measure each on every held-out group.

    Args:
        drawn: The pool.
        subsets: What was chosen.
        mode: What is done with it.
        steps: Optimizer steps of each run; None for the paper's epochs, with another model.
        seed: Of every run's start and order.
        reading: What is read off the answers.
        model: What is trained; another one than the demo model by the paper's preset.
    """
    if model != MODEL:
        options = training_options(mode, steps, "paper")
        return _one_by_one(drawn, subsets, options, seed, reading, model)
    assert steps is not None, "the demo model trains for a number of steps"
    if mode == "lora":
        return _stacked(drawn, subsets, steps, seed, reading)
    if mode == "in_context":
        return _in_context(drawn, subsets, steps, seed, reading)
    return _one_by_one(drawn, subsets, training_options(mode, steps), seed, reading, model)


def _stacked(
    drawn: Drawn, subsets: Sequence[Subset], steps: int, seed: int, reading: Reading
) -> Found:
    loaded = demo_model()
    options = training_options("lora", steps)
    start = _started(drawn, loaded, options, seed)
    found: Found = []
    for trained in (False, True):
        group = [subset for subset in subsets if bool(subset.records) == trained]
        if group:
            lora = _trained(drawn, loaded, group, options, seed, start)
            found += _answered(drawn, loaded, lora, group, reading)
    return found


def _trained(
    drawn: Drawn,
    loaded: "LoadedModel",
    subsets: Sequence[Subset],
    options: TrainingOptions,
    seed: int,
    start: "Weights | None",
) -> "StackedLora":
    """One merged run a subset; subsets without records stay as they start."""
    from delift_pipeline.training.stacked import StackedLora, train

    model, seeds = cast(Any, loaded.model), [seed] * len(subsets)
    begin = None if start is None else _repeated(start, len(subsets))
    if not subsets[0].records:
        lora = StackedLora(model, seeds, options, begin)
        lora.merge()
        return lora
    examples = examples_of(loaded, drawn.pool)
    sets = [[examples[record] for record in subset.records] for subset in subsets]
    return train(model, sets, seeds, options, begin)


def _started(
    drawn: Drawn, loaded: "LoadedModel", options: TrainingOptions, seed: int
) -> "Weights | None":
    """The weights after the existing records; None where there are none."""
    from delift_pipeline.training.stacked import train

    if drawn.existing is None:
        return None
    known = list(examples_of(loaded, drawn.existing).values())
    return train(cast(Any, loaded.model), [known], [seed], options).merge()


def _answered(
    drawn: Drawn,
    loaded: "LoadedModel",
    lora: "StackedLora",
    subsets: Sequence[Subset],
    reading: Reading,
) -> Found:
    from delift_pipeline.training.stacked import measure

    found: Found = []
    for group, heldout in drawn.heldout.items():
        asked = list(examples_of(loaded, heldout).values())
        values = measure(lora, asked)
        for name, measures in (("exact_match", values.exact), ("answer_loss", values.loss)):
            means = measures.mean(axis=1).tolist()
            found += [(s, name + group, mean) for s, mean in zip(subsets, means, strict=True)]
        if reading.texts:
            found += _texts(loaded, lora, subsets, asked, heldout, group, reading)
    return found


def _texts(
    loaded: "LoadedModel",
    lora: "StackedLora",
    subsets: Sequence[Subset],
    asked: list["Example"],
    heldout: pl.DataFrame,
    group: str,
    reading: Reading,
) -> Found:
    from delift_pipeline.bench.quality_answers import text_metrics, written
    from delift_pipeline.training.stacked import greedy_answers

    ids = pl.DataFrame({"record_id": [example.record_id for example in asked]})
    texts = heldout.select("record_id", "instruction", "input", reference="output")
    samples = ids.join(texts, on="record_id", how="left", maintain_order="left")
    found: Found = []
    answers = greedy_answers(lora, asked, loaded.encoder.eos)
    for subset, own in zip(subsets, answers, strict=True):
        own_samples = samples.with_columns(generated=pl.Series(written(loaded.tokenizer, own)))
        values = {**text_metrics(own_samples), **reading.opinion(own_samples)}
        found += [(subset, name + group, value) for name, value in values.items()]
    return found


def _in_context(
    drawn: Drawn, subsets: Sequence[Subset], steps: int, seed: int, reading: Reading
) -> Found:
    from delift_pipeline.evaluation.in_context import evaluate_in_context
    from delift_pipeline.evaluation.run import evaluate_loaded

    loaded = demo_model()
    options = EvaluationOptions(metrics=reading.metrics, in_context=SHOWN)
    start = _started(drawn, loaded, training_options("lora", steps), seed)
    if start is not None:
        _put(loaded.model, start)

    def ask(subset: Subset, heldout: pl.DataFrame) -> "Evaluation":
        chosen = drawn.pool.filter(pl.col("record_id").is_in(subset.records))
        if chosen.is_empty():
            return evaluate_loaded(loaded, heldout, options)
        return evaluate_in_context(loaded, chosen, heldout, options, embedder=NEARNESS)

    return _asked(drawn, subsets, ask, reading)


def _asked(
    drawn: Drawn,
    subsets: Sequence[Subset],
    ask: Callable[[Subset, pl.DataFrame], "Evaluation"],
    reading: Reading,
) -> Found:
    found: Found = []
    for group, heldout in drawn.heldout.items():
        for subset in subsets:
            evaluation = ask(subset, heldout)
            values = {name: float(evaluation.metrics[name]) for name in reading.metrics}
            values |= reading.opinion(evaluation.samples)
            found += [(subset, name + group, value) for name, value in values.items()]
    return found


def _one_by_one(
    drawn: Drawn,
    subsets: Sequence[Subset],
    options: TrainingOptions,
    seed: int,
    reading: Reading,
    model: ModelOptions,
) -> Found:
    """Training and evaluation as an arm does them, an adapter or a model a subset."""
    from delift_pipeline.evaluation.run import evaluate
    from delift_pipeline.training.run import train

    asked = EvaluationOptions(metrics=reading.metrics)
    with tempfile.TemporaryDirectory() as folder:
        start = None
        if drawn.existing is not None:
            start = Path(folder) / "existing"
            start.mkdir()
            train(options, model, drawn.existing, seed, start)

        def ask_all(number: int, subset: Subset) -> Found:
            out = start
            if subset.records:
                out = Path(folder) / str(number)
                out.mkdir()
                chosen = drawn.pool.filter(pl.col("record_id").is_in(subset.records))
                train(options, model, chosen, seed, out, start)
            return _asked(
                drawn,
                [subset],
                lambda _, heldout: evaluate(model, out, heldout, asked),
                reading,
            )

        return [row for number, subset in enumerate(subsets) for row in ask_all(number, subset)]


def demo_model() -> "LoadedModel":
    """The demo model, loaded afresh."""
    from delift_pipeline.scoring.model import load_model

    return load_model(MODEL)


def examples_of(loaded: "LoadedModel", records: pl.DataFrame) -> dict[str, "Example"]:
    """The tokens of records, by record_id."""
    from delift_pipeline.training.batches import encode_examples

    return {example.record_id: example for example in encode_examples(loaded.encoder, records)[0]}


def _repeated(weights: "Weights", runs: int) -> "Weights":
    return [{name: w.expand(runs, -1, -1) for name, w in layer.items()} for layer in weights]


def _put(model: Any, weights: "Weights") -> None:
    """Write one run's merged weights into the model they came from."""
    from delift_pipeline.training.stacked import base_weights

    for layer, trained in zip(base_weights(model), weights, strict=True):
        for name, own in layer.items():
            own.copy_(trained[name][0])
