"""Draw pools of the demo world for the quality benchmark, with held-out sets, and score them."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import polars as pl

from benchmarks.splits import make_pool_heldout, split_continual
from delift_pipeline.bench.pools import read_rows
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.demo.draws import make_heldout, make_pool, make_target
from delift_pipeline.demo.world import TASK_NAMES, make_world
from delift_pipeline.kernel.kernel import build_kernel, load_block
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions
from delift_pipeline.scoring.plan import build_plan, neighbour_block
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.stages.score import score_plan
from delift_pipeline.training.influence import LowRankGradients

NEIGHBOURS = 20
TARGET_TASKS = 2
MODEL = ModelOptions(model=MODEL_DEMO, template="world", threads=1)


@dataclass(frozen=True)
class Sizes:
    """Numbers of records: of the pool, of held-out records per task, of the target set."""

    pool: int = 360
    heldout_per_task: int = 24
    target: int = 24


@dataclass(frozen=True)
class StagePool:
    """One pool at one stage.

    Attributes:
        stage: The fine-tuning stage.
        pool: All records.
        wrong: record_ids with wrong answers; no selector sees them.
        heldout: Held-out records, by the ending that the names of their metrics get.
        target: The target set (task-specific).
        existing: The existing records (continual).
    """

    stage: Stage
    pool: pl.DataFrame = field(repr=False)
    wrong: frozenset[str] = field(repr=False)
    heldout: dict[str, pl.DataFrame] = field(repr=False)
    target: pl.DataFrame | None = field(default=None, repr=False)
    existing: pl.DataFrame | None = field(default=None, repr=False)

    @property
    def scored_records(self) -> pl.DataFrame:
        """The pool and the target set."""
        return pl.concat([self.pool, *([] if self.target is None else [self.target])])

    def inputs(self) -> SelectionInputs:
        """Return the inputs of a selector that reads no scores and no model."""
        candidates, existing = self.pool, self.existing
        if existing is not None:
            candidates = self.pool.join(existing, "record_id", how="anti", maintain_order="left")
        return SelectionInputs(
            self.stage,
            candidates,
            existing=() if existing is None else tuple(existing["record_id"]),
            existing_records=existing,
            target=self.target,
            whole=self.pool,
            gradients=LowRankGradients(),
        )


def draw_pool(stage: Stage, seed: int, wrong_share: float, sizes: Sizes) -> StagePool:
    """Draw a pool and its held-out sets, in which all answers are right."""
    world = make_world(seed)
    records, truths = make_pool(world, sizes.pool, seed, wrong_share)
    pool, facts = read_rows(records), {truth["fact"] for truth in truths}
    by_source = dict(zip(pool["source_ids"].list.first(), pool["record_id"], strict=True))
    wrong = frozenset(
        by_source[t["id"]] for t in truths if not t["correct"] and t["id"] in by_source
    )
    balanced = read_rows(make_heldout(world, sizes.heldout_per_task, seed, facts=facts))

    def of_tasks(tasks: Iterable[str]) -> pl.DataFrame:
        return balanced.filter(pl.col("task").is_in(list(tasks)))

    if stage == "task_specific":
        tasks = random.Random(f"bench target {seed}").sample(list(TASK_NAMES), TARGET_TASKS)
        target = read_rows(make_target(world, tasks, sizes.target, seed, facts=facts))
        return StagePool(stage, pool, wrong, {"": of_tasks(tasks)}, target=target)
    if stage == "continual":
        split = split_continual(records, seed)
        existing = pool.filter(
            pl.col("record_id").is_in([by_source[r["id"]] for r in split.existing])
        )
        new = [name for name in TASK_NAMES if name not in split.old_tasks]
        heldout = {"_new": of_tasks(new), "_old": of_tasks(split.old_tasks)}
        return StagePool(stage, pool, wrong, heldout, existing=existing)
    rows = sizes.heldout_per_task * len(TASK_NAMES)
    pooled = read_rows(make_pool_heldout(world, rows, seed, truths))
    return StagePool(stage, pool, wrong, {"": balanced, "_pool": pooled})


@dataclass(frozen=True)
class Scores:
    """The inputs of a pool's selectors, and how many pairs were scored.

    Attributes:
        inputs: The inputs of the selectors.
        pairs: Number of pairs by kernel block, with the selectors' names of the blocks.
    """

    inputs: SelectionInputs
    pairs: Mapping[str, int]


def score_pool(
    home: Home,
    name: str,
    stage_pool: StagePool,
    needs: Iterable[Needs],
    model: ModelOptions = MODEL,
    neighbours: int = NEIGHBOURS,
) -> Scores:
    """Score a pool's pairs and build its kernel. Scores that the home has are used again.

    Args:
        home: The home that stores scores and kernels.
        name: The kernel's name there.
        stage_pool: The pool, at one stage.
        needs: Which scores the selectors read.
        model: The scoring model.
        neighbours: Number of near prompts of each record.
    """
    all_needs, inputs = list(needs), stage_pool.inputs()
    near = nearest(embed(prompt_texts(stage_pool.pool)), neighbours)
    plan = build_plan(
        stage_pool.pool,
        stage_pool.target,
        stage_pool.existing,
        self_pairs="all" if any(one.self_pairs == "all" for one in all_needs) else "neighbours",
        target_pairs=stage_pool.target is not None and any(one.target_pairs for one in all_needs),
        existing_pairs=stage_pool.existing is not None
        and any(one.existing_pairs for one in all_needs),
        neighbours=near,
        existing_rows=inputs.pool,
    )
    records = stage_pool.scored_records.unique("record_id", keep="first", maintain_order=True)
    scores = score_plan(home, model, records, plan, SilentProgress())
    near_pairs = neighbour_block(tuple(stage_pool.pool["record_id"]), near)
    fingerprint = fingerprint_of(model).digest
    manifest = build_kernel(
        home,
        name,
        fingerprint,
        ScoreStore(home.scores(fingerprint)),
        plan,
        unscorable=scores.unscorable,
        neighbours=near_pairs,
    )
    blocks: dict[str, Any] = manifest.details["blocks"]
    pairs = {block: entry["pairs"] for block, entry in blocks.items()}
    pairs["neighbours"] = near_pairs.pairs
    block = partial(load_block, home, name, fingerprint)
    return Scores(replace(inputs, block=block, model=LanguageModel(model, home)), pairs)
