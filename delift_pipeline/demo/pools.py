"""The pools of the demo, each in a home of its own, and the arms that choose from them.

The first pool is run by Dagster in the demo's home. The further pools only answer the question
whether the first one was luck. So the functions of the pipeline stages run them one after another,
without Dagster and MLflow, in homes below `demo_files/`. Everything is stored as in any home: a
second run computes nothing again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from delift_pipeline.core.atomic import write_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.demo import verify_demo_model
from delift_pipeline.demo.dataset import (
    DEFAULT_SIZES,
    DEMO_SEED,
    FIRST_VERSION,
    SECOND_VERSION,
    DemoSizes,
    write_demo_files,
)
from delift_pipeline.evaluation.options import MetricName
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions
from delift_pipeline.stages.adapter import make_adapter
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.report import make_report
from delift_pipeline.stages.score import score_version
from delift_pipeline.stages.subset import make_subset

POOLS = 5
"""How many pools the demo has. More would make it slow; with fewer the error is too uncertain."""
SEEDS = tuple(range(DEMO_SEED, DEMO_SEED + POOLS))
"""The seeds of the pools, in order. The demo's home holds the pool of the first seed."""
FILES, POOL_HOMES, TRUTH = "demo_files", "pools", "truth.jsonl"
TEMPLATE = "world"
MODEL = ModelOptions(model=MODEL_DEMO, template=TEMPLATE, threads=1)
"""The demo model. Its matrices are so small that more threads would slow it down."""
METRICS: tuple[MetricName, ...] = ("exact_match", "answer_loss")
"""What is measured on the further pools: what the demo's table shows."""


@dataclass(frozen=True)
class Pairs:
    """How many pairs of a pool were scored now, and how many were stored before."""

    scored: int = 0
    reused: int = 0

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(self.scored + other.scored, self.reused + other.reused)


def pool_home(home: Home, seed: int) -> Home:
    """Return the home of the pool that a seed draws; for the first seed it is the demo's home."""
    return home if seed == SEEDS[0] else Home(home.root / FILES / POOL_HOMES / str(seed))


def truth_file(home: Home) -> Path:
    """Return the file with the right answers of the pool in a pool's home."""
    return home.root / FILES / TRUTH


def prepare_demo(home: Home, seed: int = DEMO_SEED, sizes: DemoSizes = DEFAULT_SIZES) -> None:
    """Write a pool's files, its arms if there are none, and its two versions.

    A second call changes nothing.
    """
    verify_demo_model()
    if not home.arms_file.is_file():
        shipped = resources.files("delift_pipeline.demo").joinpath("arms.yaml")
        write_text(home.arms_file, shipped.read_text("utf-8"))
    load_arms(home)  # Refuses a faulty file before anything else is written.
    files = write_demo_files(home.root / FILES, seed, sizes=sizes)
    store = partial(ingest, home, model=MODEL_DEMO, template=TEMPLATE, dataset="demo")
    targets, first = files.first_target, files.first_heldout
    store(files.first_pool, version=FIRST_VERSION, target=targets, heldout=first)
    second, parents = files.second_heldout, (FIRST_VERSION,)
    store(files.second_pool, version=SECOND_VERSION, parents=parents, heldout=second)


def demo_arms(home: Home) -> Iterator[tuple[str, list[Arm]]]:
    """Yield each version of a pool with the enabled arms that run on it."""
    arms = [arm for arm in load_arms(home) if arm.enabled]
    yield FIRST_VERSION, [arm for arm in arms if arm.stage != "continual"]
    yield SECOND_VERSION, [arm for arm in arms if arm.stage == "continual"]


def run_pool(home: Home, seed: int, sizes: DemoSizes = DEFAULT_SIZES) -> Pairs:
    """Draw one further pool, and run the arms of the demo's home on it, except what is stored.

    Raises:
        InputError: an arm cannot be run on the pool.
        DeliftError: a stage failed.
    """
    place = pool_home(home, seed)
    write_text(place.arms_file, home.arms_file.read_text("utf-8"))
    prepare_demo(place, seed, sizes)
    progress, pairs, arms = SilentProgress(), Pairs(), load_arms(place)
    for version, chosen in demo_arms(place):
        plan_pairs(place, version, arms)
        scores = score_version(place, version, "in_context", MODEL, progress, with_baseline=True)
        if scores.report:
            pairs += Pairs(scores.report.pairs_scored, scores.report.pairs_reused)
        else:
            pairs += Pairs(reused=scores.manifest.counts["pairs"])
        make_kernel(place, version, MODEL)
        for arm in chosen:
            evaluation = arm.evaluation.model_copy(update={"metrics": METRICS})
            short = arm.model_copy(update={"evaluation": evaluation})
            make_subset(place, version, short, MODEL)
            make_adapter(place, version, short, MODEL, None, progress)
            make_report(place, version, short, MODEL, None, progress)
    return pairs
