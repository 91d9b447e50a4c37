"""Pools of the demo world for the quality benchmark: records, held-out sets, scores, subsets."""

import json
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.demo.drawing import Record
from delift_pipeline.demo.pool import make_pool
from delift_pipeline.demo.splits import (
    make_heldout,
    make_pool_heldout,
    make_target,
    split_continual,
)
from delift_pipeline.demo.world import TASK_NAMES, make_world
from delift_pipeline.progress import SilentProgress
from delift_pipeline.records.read import read_records
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions
from delift_pipeline.scoring.plan import build_plan, neighbour_block
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.steps.score_file import score_plan
from delift_pipeline.storage.home import Home
from delift_pipeline.utility.kernel import build_kernel, load_block

NEIGHBOURS = 20
TARGET_TASKS = 2
MODEL = ModelOptions(model=MODEL_DEMO, template="world", threads=1)


@dataclass(frozen=True)
class Sizes:
    """Numbers of records: of the pool, of held-out records a task, of the target set."""

    pool: int = 360
    heldout_per_task: int = 24
    target: int = 24


@dataclass(frozen=True)
class Drawn:
    """One pool at one stage.

    Attributes:
        stage: The stage.
        pool: All records.
        wrong: record_ids with wrong answers; no selector sees them.
        heldout: Held-out records by the name of their metric's group.
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
    def candidates(self) -> pl.DataFrame:
        """What is chosen from: in the continual stage the records that are not existing."""
        if self.existing is None:
            return self.pool
        return self.pool.join(self.existing, on="record_id", how="anti", maintain_order="left")

    def inputs(self) -> SelectionInputs:
        """What a selector is given that reads no scores and no model."""
        existing = self.existing
        return SelectionInputs(
            self.stage,
            self.candidates,
            existing=() if existing is None else tuple(existing["record_id"]),
            existing_records=existing,
            target=self.target,
            whole=self.pool,
        )


def draw(stage: Stage, seed: int, wrong_share: float, sizes: Sizes) -> Drawn:
    """Draw a pool and what its stage is measured on; answers of held-out sets are right."""
    world = make_world(seed)
    records, truths = make_pool(world, sizes.pool, seed, wrong_share)
    pool, facts = _frame(records), {truth["fact"] for truth in truths}
    by_source = dict(zip(pool["source_ids"].list.first(), pool["record_id"], strict=True))
    wrong = frozenset(
        by_source[t["id"]] for t in truths if not t["correct"] and t["id"] in by_source
    )
    balanced = _frame(make_heldout(world, sizes.heldout_per_task, seed, facts=facts))
    if stage == "task_specific":
        tasks = random.Random(f"bench target {seed}").sample(list(TASK_NAMES), TARGET_TASKS)
        target = _frame(make_target(world, tasks, sizes.target, seed, facts=facts))
        return Drawn(stage, pool, wrong, {"": _of_tasks(balanced, tasks)}, target=target)
    if stage == "continual":
        split = split_continual(records, seed)
        existing = pool.filter(
            pl.col("record_id").is_in([by_source[r["id"]] for r in split.existing])
        )
        new = [name for name in TASK_NAMES if name not in split.old_tasks]
        heldout = {"_new": _of_tasks(balanced, new), "_old": _of_tasks(balanced, split.old_tasks)}
        return Drawn(stage, pool, wrong, heldout, existing=existing)
    rows = sizes.heldout_per_task * len(TASK_NAMES)
    pooled = _frame(make_pool_heldout(world, rows, seed, truths))
    return Drawn(stage, pool, wrong, {"": balanced, "_pool": pooled})


def _frame(records: Iterable[Record]) -> pl.DataFrame:
    """Records as a file of them would be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return read_records(path).frame


def _of_tasks(frame: pl.DataFrame, tasks: Iterable[str]) -> pl.DataFrame:
    return frame.filter(pl.col("task").is_in(list(tasks)))


@dataclass(frozen=True)
class Wanted:
    """Which pairs a pool's selectors read.

    Attributes:
        all_pairs: Every pair of the pool; else near ones.
        target: Pairs with the target set, where the stage has one.
        existing: Pairs with the existing records, where the stage has them.
    """

    all_pairs: bool = False
    target: bool = True
    existing: bool = False

    @classmethod
    def of(cls, needs: Iterable[Needs]) -> "Wanted":
        """What several selectors read together."""
        read = list(needs)
        return cls(
            any(one.self_pairs == "all" for one in read),
            any(one.target_pairs for one in read),
            any(one.existing_pairs for one in read),
        )


@dataclass(frozen=True)
class Scores:
    """What a pool's selectors read, and what it cost.

    Attributes:
        inputs: For the selectors.
        pairs: Pairs by kernel block, in selectors' names of the blocks.
    """

    inputs: SelectionInputs
    pairs: Mapping[str, int]


def scored(
    home: Home,
    name: str,
    drawn: Drawn,
    wanted: Wanted,
    model: ModelOptions = MODEL,
    neighbours: int = NEIGHBOURS,
) -> Scores:
    """Score a pool's pairs and build its kernel; what the home has is found again.

    Args:
        home: Where scores and kernels are kept.
        name: The kernel's name there.
        drawn: The pool.
        wanted: The pairs.
        model: The scoring model.
        neighbours: Near prompts of each record.
    """
    near = nearest(embed(prompt_texts(drawn.pool)), neighbours)
    plan = build_plan(
        drawn.pool,
        drawn.target,
        drawn.existing,
        self_pairs="all" if wanted.all_pairs else "neighbours",
        target_pairs=wanted.target and drawn.target is not None,
        existing_pairs=wanted.existing and drawn.existing is not None,
        neighbours=near,
        existing_rows=drawn.candidates,
    )
    frames = [drawn.pool, *([] if drawn.target is None else [drawn.target])]
    everything = pl.concat(frames).unique("record_id", keep="first", maintain_order=True)
    found = score_plan(home, model, everything, plan, SilentProgress())
    beside = neighbour_block(tuple(drawn.pool["record_id"]), near)
    fingerprint = fingerprint_of(model).digest
    manifest = build_kernel(
        home,
        name,
        fingerprint,
        found.store,
        plan,
        unscorable=found.unscorable,
        neighbours=beside,
    )
    blocks: dict[str, Any] = manifest.details["blocks"]
    pairs = {block: entry["pairs"] for block, entry in blocks.items()}
    pairs["neighbours"] = beside.pairs
    loader = _loader(home, name, fingerprint)
    language_model = LanguageModel(model, home)
    return Scores(replace(drawn.inputs(), block=loader, model=language_model), pairs)


def _loader(home: Home, name: str, fingerprint: str) -> Callable[..., Any]:
    return lambda block, form: load_block(home, name, fingerprint, block, form)
