"""Is selection worth it on my data? Compare selectors on pools that are drawn from a user's file.

Each cell is one pool with one share of planted wrong answers. Every selector chooses from it by the
stages of `delift select`, so a pair is scored once for all selectors. LoRA runs on the subsets are
trained stacked, and measured on held-out records that no pool contains.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.bench.advice import advise
from delift_pipeline.bench.pools import write_pool
from delift_pipeline.bench.quality import result_path, run_quality, table_path
from delift_pipeline.bench.sources import Pool, Source
from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import DeliftError, Fault, InputError, is_memory_error
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import LineProgress, Progress, SilentProgress
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions, portable_name
from delift_pipeline.scoring.report import stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.stages.file_selection import Request
from delift_pipeline.stages.select_file import select_file
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.scoring.model import LoadedModel
    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.stacked_layers import StackedLora

NAME = "data"
"""What the table is called in the folder of results."""
INITIAL, RANDOM, FULL = "initial", "random", "full"
SELECTORS = (INITIAL, RANDOM, FULL, "delift_se", "delift_trusted")
"""The selectors that are compared by default. None of them reads every pair."""
RANDOM_DRAWS = 2
EPOCHS = 5.0
"""Passes over a subset of the budget's size that decide how many steps all runs of a budget get."""
LEAST_STEPS, DEMO_STEPS = 2, 200
"""Fewest steps of a run, and the steps of the demo model, which is too small to learn in few."""
RUNS_AT_ONCE = 32
"""The most runs that are stacked."""
RECORDS_AT_ONCE = {"cpu": 4, "cuda": 16}
"""How many records of one run are in one forward pass. With few, little of it is padding."""
TRAINED_TOKENS = {"cpu": 2_048, "cuda": 32_768}
"""How many tokens of all stacked runs one pass has at most. More only cost memory: a model of 135
million parameters keeps more than a megabyte for each token."""
TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 65_536}
"""How many tokens of held-out records are in one forward pass."""
BATCH = 16
CODE = 1
"""Raise this number when the meaning of a cell's result changes."""


@dataclass(frozen=True)
class Contender:
    """A selector with its options, and its name in tables: as the user wrote it."""

    name: str
    selector: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_contender(text: str) -> Contender:
    """Read `delift_se:embedder=minilm` as a selector with an option; options are split by `+`.

    Raises:
        InputError: The selector or an option is unknown, or an option has no value.
    """
    import yaml

    selector, _, tail = text.partition(":")
    pairs = [one.partition("=") for one in tail.split("+") if one]
    if bad := [name for name, _, value in pairs if not value]:
        reason = f"{bad[0]!r} has no value. Write SELECTOR:NAME=VALUE"
        raise InputError(reason, field="--selectors")
    contender = Contender(text, selector, {name: yaml.safe_load(value) for name, _, value in pairs})
    try:
        needs_of(selector, "instruction_tuning", contender.options)
    except InputError as refused:
        faults = (Fault(one.reason, field="--selectors") for one in refused.faults)
        raise InputError(*faults) from refused
    return contender


@dataclass(frozen=True)
class Training:
    """How the subsets are trained.

    Attributes:
        steps: Steps of every run; None computes them from `EPOCHS` and the budget.
        epochs: Passes of every run over its own records, instead of steps.
        learning_rate: The highest learning rate; None for the default.
    """

    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None

    def options(self, model: ModelOptions, budget: int, records_at_once: int) -> TrainingOptions:
        """Return the options of runs with a budget of `budget` records."""
        values: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 2, "floor": 0.0}
        if model.model == MODEL_DEMO:
            values = {"preset": "demo", "warmup_steps": 2}
        values |= {"batch_size": records_at_once, "accumulation": BATCH // records_at_once}
        if self.learning_rate is not None:
            values["learning_rate"] = self.learning_rate
        if self.epochs is not None:
            return TrainingOptions(**values, epochs=self.epochs)
        usual = max(LEAST_STEPS, round(EPOCHS * budget / BATCH))
        steps = self.steps or (DEMO_STEPS if model.model == MODEL_DEMO else usual)
        return TrainingOptions(**values, steps=steps)


@dataclass(frozen=True)
class Subset:
    """The records that a contender chose at a budget; `cost` is the cost of its whole ranking."""

    contender: Contender
    budget: float
    draw: int
    records: tuple[str, ...] = field(repr=False)
    cost: "Cost"


@dataclass(frozen=True)
class Cost:
    """The cost of a ranking: pairs that it reads, pairs scored for it now, and seconds.

    The seconds are those of a selection that reuses no scores: reused pairs count with the average
    speed at which pairs were scored.
    """

    pairs: int = 0
    scored: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class DataCell:
    """One pool with one share of wrong answers, and the selectors that choose from it."""

    source: Source
    seed: int
    wrong_share: float
    budgets: tuple[float, ...]
    contenders: tuple[Contender, ...]
    model: ModelOptions
    training: Training | None
    generate: bool = False
    progress: Progress = field(default_factory=SilentProgress, compare=False)
    load: "Callable[[], LoadedModel] | None" = field(default=None, compare=False)

    @property
    def stage(self) -> Stage:
        """The fine-tuning stage."""
        return "instruction_tuning" if self.source.target is None else "task_specific"

    @property
    def key(self) -> str:
        """Identifies what is measured; equal cells have equal keys."""
        contenders = [[one.selector, dict(one.options)] for one in self.contenders]
        training = self.training and asdict(self.training)
        fingerprint = fingerprint_of(self.model).digest
        identity = [self.budgets, contenders, training, self.generate, fingerprint, CODE]
        digest = digest_json([*identity, *self.source.identity])[:12]
        return f"{NAME}-{self.seed}-{self.wrong_share:g}-{digest}"

    def run(self, folder: Path) -> list[dict[str, Any]]:
        """Draw the pool, select, train and measure; see `delift_pipeline.bench.quality.Unit`."""
        started = time.monotonic()
        pool = self.source.pool(self.seed, self.wrong_share)
        subsets = self._select(folder, pool)
        tasks = dict(zip(pool.records["record_id"], pool.records["task"], strict=True))
        rows = []
        for one in (subset for subset in subsets if subset.contender.selector != INITIAL):
            share = len({tasks[record] for record in one.records}) / len(set(tasks.values()))
            facts = {"tasks_kept": share, "selection_seconds": one.cost.seconds}
            rows += [self._row(pool, one, "selection", *fact) for fact in facts.items()]
        if self.training is not None:
            for subset, values in self._train(pool, subsets):
                rows += [self._row(pool, subset, "lora", *value) for value in values.items()]
        write_json(
            _facts_path(folder, self),
            {
                "seconds": time.monotonic() - started,
                "pairs_scored": sum({id(s.cost): s.cost.scored for s in subsets}.values()),
                "wrong": sorted(pool.wrong),
                "picks": [[s.contender.name, s.budget, s.draw, s.records] for s in subsets],
            },
        )
        return rows

    def _row(
        self, pool: Pool, subset: Subset, mode: str, metric: str, value: float
    ) -> dict[str, Any]:
        return {
            "selector": subset.contender.name,
            "mode": mode,
            "budget": subset.budget,
            "draw": subset.draw,
            "metric": metric,
            "value": value,
            "size": len(subset.records),
            "wrong": len(pool.wrong.intersection(subset.records)) / max(1, len(subset.records)),
            "pairs_per_record": subset.cost.pairs / pool.records.height,
        }

    def _select(self, folder: Path, pool: Pool) -> list[Subset]:
        """Let every contender choose; a smaller budget takes the start of the same ranking."""
        work, subsets = folder / "pools" / self.key, []
        file = write_pool(pool.records, work / "pool.jsonl")
        for number, one in enumerate(self.contenders):
            for draw in range(RANDOM_DRAWS if one.selector == RANDOM else 1):
                ranking, cost = (), Cost()
                if one.selector == FULL:
                    ranking = tuple(pool.records["record_id"])
                elif one.selector != INITIAL:
                    out = work / f"{number}-{draw}.jsonl"
                    ranking, cost = self._rank(folder, file, one, draw, out)
                for budget in self.budgets:
                    count = resolve_budget(budget, pool.records.height)
                    chosen = ranking if one.selector == FULL else ranking[:count]
                    subsets.append(Subset(one, budget, draw, chosen, cost))
        return subsets

    def _rank(
        self, folder: Path, file: Path, one: Contender, draw: int, out: Path
    ) -> tuple[tuple[str, ...], Cost]:
        """Return a contender's ranking at the greatest budget, and its cost."""
        request = Request(
            file=file,
            selector=one.selector,
            budget=str(max(self.budgets)),
            out=out,
            target=self.source.target,
            stage=self.stage,
            options=one.options,
            seed=1000 * draw + self.seed,
        )
        home = Home.at(folder / "home")
        facts = select_file(home, request, self.model, self.progress).facts
        scored, reused = facts["pairs_scored"], facts["pairs_reused"]
        rate = stored_rate(ScoreStore(home.scores(facts["fingerprint"]))) if reused else None
        seconds = facts["seconds"] + (reused / rate if rate else 0.0)
        ranking = tuple(read_records(out).frame["record_id"])
        return ranking, Cost(scored + reused, scored, seconds)

    def _train(
        self, pool: Pool, subsets: Sequence[Subset]
    ) -> list[tuple[Subset, dict[str, float]]]:
        """Train on every subset, stacked, and measure each run on the held-out records."""
        from delift_pipeline.training.batches import encode_examples

        assert self.training is not None and self.load is not None
        loaded = self.load()
        device = loaded.device.type
        examples = {one.record_id: one for one in encode_examples(loaded.encoder, pool.records)[0]}
        questions = encode_examples(loaded.encoder, pool.heldout)[0]
        if not questions:
            raise DeliftError("no held-out record fits into the window. Widen --window")
        groups: dict[tuple[float, int], list[Subset]] = {}
        for subset in subsets:
            options = self._options(pool, subset.budget, device)
            known = sum(record in examples for record in subset.records)
            groups.setdefault((subset.budget, known and options.presentations(known)), []).append(
                subset
            )
        results = []
        for (budget, presentations), group in groups.items():
            options = self._options(pool, budget, device)
            tokens = options.batch_size * max(map(len, examples.values()), default=1)
            fitting = TRAINED_TOKENS.get(device, 2_048) // tokens
            at_once = max(1, min(RUNS_AT_ONCE, fitting))
            # Runs without records are all the untrained model, which is measured once.
            parts = [group[i : i + at_once] for i in range(0, len(group), at_once)]
            for part in parts:
                sets = [[examples[r] for r in s.records if r in examples] for s in part]
                trained = sets if presentations else sets[:1]
                values = self._measure(loaded, pool, trained, options, questions)
                results += zip(part, values * (len(part) // len(values)), strict=True)
        return results

    def _options(self, pool: Pool, budget: float, device: str) -> TrainingOptions:
        assert self.training is not None
        count = resolve_budget(budget, pool.records.height)
        return self.training.options(self.model, count, RECORDS_AT_ONCE.get(device, BATCH))

    def _measure(
        self,
        loaded: "LoadedModel",
        pool: Pool,
        sets: "Sequence[Sequence[Example]]",
        options: TrainingOptions,
        questions: "Sequence[Example]",
    ) -> list[dict[str, float]]:
        """Train runs together, and return the metrics of each; half of them if memory runs out."""
        from delift_pipeline.training.stacked_layers import StackedLora, measure, train

        started, seeds, lora = time.monotonic(), [self.seed] * len(sets), None
        try:
            if any(sets):
                lora = train(loaded.model, sets, seeds, options, self.progress)
            else:
                lora = StackedLora(loaded.model, seeds, options)
            seconds = (time.monotonic() - started) / len(sets)
            results = measure(lora, questions, TOKENS_AT_ONCE.get(loaded.device.type, 4_096))
            values = [
                {
                    "answer_loss": float(loss.mean()),
                    "token_accuracy": float(accuracy.mean()),
                    "training_seconds": seconds if chosen else 0.0,
                    **(self._generate(loaded, lora, run, pool.heldout) if self.generate else {}),
                }
                for run, (chosen, loss, accuracy) in enumerate(
                    zip(sets, results.loss, results.accuracy, strict=True)
                )
            ]
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if len(sets) == 1:
                reason = "training ran out of memory. Pass a shorter --window or a smaller model"
                raise DeliftError(reason) from error
            values = None
        finally:
            if lora is not None:
                lora.remove()
        if values is not None:
            return values
        parts = sets[: len(sets) // 2], sets[len(sets) // 2 :]
        return [one for p in parts for one in self._measure(loaded, pool, p, options, questions)]

    def _generate(
        self, loaded: "LoadedModel", lora: "StackedLora", run: int, heldout: pl.DataFrame
    ) -> dict[str, float]:
        """Return the metrics of the answers that one run generates."""
        from delift_pipeline.evaluation.options import EvaluationOptions
        from delift_pipeline.evaluation.run import evaluate_model

        names = ("exact_match", "rougeL")
        with lora.only(run):
            evaluation = evaluate_model(loaded, heldout, EvaluationOptions(metrics=names))
        return {name: float(evaluation.metrics[name]) for name in names}


def compare_on_data(
    folder: Path,
    source: Source,
    model: ModelOptions,
    progress: Progress,
    *,
    selectors: Sequence[str] = SELECTORS,
    budgets: Sequence[float] = (0.1, 0.3),
    wrong_shares: Sequence[float] = (0.0,),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    training: Training | None = None,
    generate: bool = False,
) -> dict[str, Any]:
    """Measure all cells that the folder lacks, and return the table with its advice.

    Args:
        folder: The folder of results; a killed comparison continues from it.
        source: Where pools come from.
        model: The model that scores, and is trained.
        progress: Shows the cells, and the work within a cell.
        selectors: Selectors, with options as `parse_contender` reads them. Random choice is added.
        budgets: Shares of the pool.
        wrong_shares: Shares of planted wrong answers.
        seeds: One seed for each pool.
        training: How the subsets are trained; None to select only.
        generate: Whether answers are also generated and compared as texts.

    Returns:
        The table of `run_quality`, with `advice` (a sentence), `seconds` (of all cells) and
        `pairs_scored` (in all cells).

    Raises:
        InputError: A selector is unknown, or an option is out of range.
    """
    for budget in budgets:
        if not 0 < budget < 1:
            raise InputError(f"{budget} is not a share of the pool: write 0.3", field="--budgets")
    for share in wrong_shares:
        if not 0 <= share <= 1:
            raise InputError(f"{share} is not within 0 and 1", field="--wrong")
    contenders = tuple(parse_contender(text) for text in dict.fromkeys((RANDOM, *selectors)))
    loaded: list[LoadedModel] = []

    def load() -> "LoadedModel":
        from delift_pipeline.scoring.model import load_model

        # Loaded once, and only if a cell is missing. Quantised weights that were evaluated once may
        # give wrong gradients later, so the model is loaded whole.
        if not loaded:
            loaded.append(load_model(model.model_copy(update={"load_in": None})))
        return loaded[0]

    cells = [
        DataCell(
            source,
            seed,
            wrong,
            tuple(sorted(set(budgets))),
            contenders,
            model,
            training,
            generate,
            LineProgress(progress.say),
            load,
        )
        for seed in seeds
        for wrong in wrong_shares
    ]
    notes = [*source.notes, *_notes(model, training, source)]
    table = run_quality(folder, NAME, cells, progress, 1, notes)
    results = [(cell, read_json(result_path(folder, cell))["rows"]) for cell in cells]
    facts = [read_json(_facts_path(folder, cell)) for cell in cells]
    equal_epochs = training is not None and training.epochs is not None
    table |= {
        "advice": advise(results, equal_epochs=equal_epochs),
        "seconds": sum(one["seconds"] for one in facts),
        "pairs_scored": sum(one["pairs_scored"] for one in facts),
    }
    write_json(table_path(folder, NAME), table)
    return table


def _notes(model: ModelOptions, training: Training | None, source: Source) -> list[str]:
    """Return what a reader of the table must know."""
    name = portable_name(model.model)
    template = fingerprint_of(model).template
    notes = [f"Model {name}, template {template}; pools of {source.pool_size}."]
    if training is None:
        return [*notes, "Nothing was trained."]
    if training.epochs is not None:
        return [*notes, f"Every run made {training.epochs:g} passes over its own records."]
    steps = f"{training.steps}" if training.steps else f"{EPOCHS:g} passes over a subset make"
    return [*notes, f"All runs of a budget took equally many steps ({steps}), also full."]


def _facts_path(folder: Path, cell: DataCell) -> Path:
    return folder / "pools" / cell.key / "facts.json"
