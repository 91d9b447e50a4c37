"""What the demo shows: means over its pools, a sentence on each stage, and a legend.

A mean's error is its standard error over pools. Differences are paired: an arm minus the random arm
on the same pool. Nothing here knows which arm should win.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.core.formatting import number, verdict_style, with_error
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.demo.draws import Truth
from delift_pipeline.demo.pools import MODEL, demo_arms, pool_home, truth_file
from delift_pipeline.evaluation.leaderboard import STAGES, leaderboard_rows
from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import stage_heldout
from delift_pipeline.records.stored import load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.selection.registry import traits_of
from delift_pipeline.selection.run import SUBSET
from delift_pipeline.stages.arms import Arm

if TYPE_CHECKING:
    from rich.console import Console

RECOMMENDED = "delift_trusted"
"""The selector that the sentence on a stage is about."""
EXACT, LOSS = "exact_match", "answer_loss"


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    Attributes:
        heading: Its title in the table.
        name: Its name in a sentence.
        higher_is_better: Whether more of it is better.
        digits: Digits after the point of its means.
    """

    heading: str
    name: str
    higher_is_better: bool
    digits: int


MEASURES: dict[str, Measure] = {
    EXACT: Measure(METRICS[EXACT].heading, "exact match", True, 2),
    LOSS: Measure(METRICS[LOSS].heading, "loss", False, 2),
    "wrong": Measure("wrong", "wrong answers", False, 1),
    "facts": Measure("facts", "facts covered", True, 1),
}
"""The columns of the table, by their names in `PoolRow`."""

LEGEND = """\
exact:    share of the questions that the model answers exactly. Best arm first.
loss:     negative log-probability of the right answers; a mean over tokens.
          Lower is better.
wrong:    picks with a wrong answer. We made 15 % of each pool's answers wrong.
facts:    different facts that the picks state with a right answer. In the stage
          task_specific only facts of the tasks that the questions are about.
- random: exact match minus the exact match of random on the same pool.
Numbers are means over pools, with the standard error over pools after ±. A
difference of more than two standard errors is resolved. Any other difference
may be chance: it is not resolved, and we call it not clearly different.
initial is the untrained model. full is trained on the whole pool. All other
arms are trained on their picks. All train for the same number of steps.\
"""


@dataclass(frozen=True)
class PoolRow:
    """One arm on one pool, or the untrained model (`initial`) on it.

    Attributes:
        seed: The seed of the pool.
        records: How many records were chosen; 0 for the untrained model.
        pool: How many records there were to choose from; None for the untrained model.
        heldout: How many questions were asked.
        exact_match: Share of exact answers, or None if it was not measured.
        answer_loss: Mean loss, or None if it was not measured.
        wrong: How many picks have a wrong answer. None for the untrained model.
        facts: How many different facts have a pick with a right answer. Only facts of tasks that
            the questions are about count. None for the untrained model.
    """

    seed: int
    stage: str
    arm: str
    selector: str
    records: int
    pool: int | None
    heldout: int
    exact_match: float | None
    answer_loss: float | None
    wrong: int | None
    facts: int | None


@dataclass(frozen=True)
class Mean:
    """A mean over pools, and its standard error; the error of a single pool is None."""

    mean: float
    se: float | None
    pools: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of at least one value."""
        n = len(values)
        error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
        return cls(statistics.fmean(values), error, n)

    def text(self, digits: int, *, sign: bool = False) -> str:
        """Return the mean and its error as text."""
        return with_error(self.mean, self.se, digits, sign=sign)


@dataclass(frozen=True)
class ArmMeans:
    """One arm's means over pools, and its means minus those of the random arm, by measure.

    A measure without a value on any pool is left out.
    """

    arm: str
    selector: str
    records: int
    means: dict[str, Mean]
    minus_random: dict[str, Mean]

    @property
    def label(self) -> str:
        """The arm's name without its stage."""
        return self.arm.split(".", 1)[-1]


@dataclass(frozen=True)
class StageMeans:
    """All arms of one stage, the highest exact match first.

    Attributes:
        pool: How many records the arms chose from, on the first pool.
        heldout: How many questions each model was asked, on the first pool.
        pools: How many pools there are.
        verdict: What the numbers say about the recommended selector; None if the stage lacks it
            or a random arm.
    """

    stage: str
    pool: int
    heldout: int
    pools: int
    arms: list[ArmMeans]
    verdict: str | None


def pool_rows(home: Home, seed: int) -> list[PoolRow]:
    """Return the results on one pool: its enabled arms and the untrained model."""
    place, fingerprint = pool_home(home, seed), fingerprint_of(MODEL).digest
    arms = {arm.name: arm for _, chosen in demo_arms(place) for arm in chosen}
    rows = []
    for row in leaderboard_rows(place):
        is_base = row["arm"] == BASE_MODEL
        if row["fingerprint"] != fingerprint or not (is_base or row["arm"] in arms):
            continue  # An arm that was disabled later, or scores of another model.
        counts = None if is_base else _count_picks(place, row["version"], arms[row["arm"]])
        copied = {name: row[name] for name in ("stage", "arm", "selector", "records", "pool")}
        rows.append(
            PoolRow(
                seed=seed,
                **copied,
                heldout=row["heldout"],
                exact_match=row["metrics"].get(EXACT),
                answer_loss=row["metrics"].get(LOSS),
                wrong=counts and counts[0],
                facts=counts and counts[1],
            )
        )
    return rows


def _count_picks(home: Home, version: str, arm: Arm) -> tuple[int, int]:
    """Return how many picks of an arm are wrong, and how many facts of asked tasks are right."""
    dataset = load_version(home, version)
    lines = truth_file(home).read_text("utf-8").splitlines()
    truths: dict[str, Truth] = {truth["id"]: truth for truth in map(json.loads, lines)}
    picks = pl.read_parquet(home.subset(version, arm.name) / SUBSET, columns=["record_id"])
    sources = picks.join(dataset.pool, on="record_id", how="left")["source_ids"]
    picked = [truths[ids[0]] for ids in sources]
    questions = stage_heldout(dataset.heldout, dataset.target, arm.stage, arm.evaluation)["task"]
    tasks = set(questions)
    facts = {one["fact"] for one in picked if one["correct"] and one["task"] in tasks}
    return sum(not one["correct"] for one in picked), len(facts)


def summarise_pools(rows: Iterable[PoolRow]) -> list[StageMeans]:
    """Return the means of each stage over pools."""
    stages: dict[str, dict[str, list[PoolRow]]] = {}
    for row in rows:
        stages.setdefault(row.stage, {}).setdefault(row.arm, []).append(row)
    return [_stage_means(stage, stages[stage]) for stage in STAGES if stage in stages]


def _stage_means(stage: str, arms: dict[str, list[PoolRow]]) -> StageMeans:
    random = next(
        (rows for rows in arms.values() if traits_of(rows[0].selector).reference == "random"), []
    )
    means = [_arm_means(rows, random) for rows in arms.values()]
    means.sort(key=lambda one: (*(_rank(one, name) for name in (EXACT, LOSS)), one.arm))
    ours = next((one for one in means if one.selector == RECOMMENDED), None)
    every = [row for rows in arms.values() for row in rows]
    first = [row for row in every if row.seed == every[0].seed]
    return StageMeans(
        stage=stage,
        pool=max(row.pool or 0 for row in first),
        heldout=max(row.heldout for row in first),
        pools=len({row.seed for row in every}),
        arms=means,
        verdict=ours and verdict_sentence(ours.label, ours.minus_random),
    )


def _arm_means(rows: list[PoolRow], random: list[PoolRow]) -> ArmMeans:
    first, reference = rows[0], {row.seed: row for row in random}
    means, gaps = dict[str, Mean](), dict[str, Mean]()
    for name in MEASURES:
        values = {row.seed: value for row in rows if (value := getattr(row, name)) is not None}
        if values:
            means[name] = Mean.of(list(values.values()))
        others = {seed: getattr(reference[seed], name) for seed in values if seed in reference}
        paired = [values[seed] - other for seed, other in others.items() if other is not None]
        if paired and rows is not random:
            gaps[name] = Mean.of(paired)
    return ArmMeans(first.arm, first.selector, first.records, means, gaps)


def _rank(arm: ArmMeans, name: str) -> float:
    """Return a number that is smaller for a better mean; infinite without one."""
    if name not in arm.means:
        return math.inf
    mean = arm.means[name].mean
    return -mean if MEASURES[name].higher_is_better else mean


def verdict_sentence(label: str, minus_random: dict[str, Mean]) -> str | None:
    """Say in one sentence in what an arm is better or worse than random, and what is not resolved.

    A difference is resolved if it is more than two standard errors over at least two pools. None
    without any difference.
    """
    outcomes: dict[str, list[str]] = {"good": [], "bad": [], "soft": []}
    for name, gap in minus_random.items():
        measure = MEASURES[name]
        better = gap.mean if measure.higher_is_better else -gap.mean
        style = "soft" if gap.se is None else verdict_style(gap.se, better)
        digits = 3 if name in (EXACT, LOSS) else measure.digits
        outcomes[style].append(f"{measure.name} ({gap.text(digits, sign=True)})")
    words = {"good": "better in", "bad": "worse in", "soft": "not clearly different in"}
    parts = [f"{words[style]} {_join_words(texts)}" for style, texts in outcomes.items() if texts]
    return f"Compared with random, {label} is {'; '.join(parts)}." if parts else None


def _join_words(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def print_stages(stages: Iterable[StageMeans], console: "Console") -> None:
    """Print one table and one sentence for each stage, and the legend."""
    from rich.table import Table

    for stage in stages:
        kinds = {one.arm: traits_of(one.selector).reference for one in stage.arms}
        sizes = sorted({one.records for one in stage.arms if kinds[one.arm] in (None, "random")})
        picks = "-".join(f"{size:,}" for size in dict.fromkeys((*sizes[:1], *sizes[-1:])))
        title = (
            f"{stage.stage}: {picks} of {stage.pool:,} records chosen, "
            f"{stage.heldout:,} questions, {stage.pools} pools"
        )
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("arm", no_wrap=True)
        for heading in (*(measure.heading for measure in MEASURES.values()), "- random"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in stage.arms:
            cells = [
                one.means[name].text(measure.digits) if name in one.means else number(None)
                for name, measure in MEASURES.items()
            ]
            gap = one.minus_random.get(EXACT)
            table.add_row(one.label, *cells, gap.text(2, sign=True) if gap else number(None))
        console.print(table)
        if stage.verdict:
            console.print(stage.verdict, highlight=False)
        console.print()
    console.print(LEGEND, highlight=False)


def stages_json(stages: Iterable[StageMeans]) -> list[dict[str, Any]]:
    """Return the stages for the command's JSON document."""
    return [asdict(stage) for stage in stages]
