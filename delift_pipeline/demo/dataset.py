"""Write the input files of the demo: two versions of one synthetic dataset.

Version `demo-v1` has a pool of five tasks from five families, a balanced held-out set, and a
target set of 24 correct records of two of the tasks. Version `demo-v2` has that pool and
new records, three quarters of them on five new tasks and one quarter on the old ones. Its held-out
set is the first one and as many records of the new tasks. Its parent is `demo-v1`.

Why these sizes: exact scoring takes 25,600 pairs for 160 records, 10,000 for 100 new ones, and at
most 16,000 with the existing ones. That is well under a minute on one core, which leaves some
minutes for about a dozen fine-tunings. Of 160 records the most frequent task has about 65 and the
rarest about 15, on about 40 facts. So a budget of 30 % (48 records) cannot hold each fact twice,
and the selector has to choose. With 24 held-out records per task, the standard error of an
exact-match rate is 0.10 for one task and 0.05 for all five. One run cannot resolve smaller
differences.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.demo.draws import Record, Truth, make_heldout, make_pool, make_target
from delift_pipeline.demo.world import TASK_NAMES, make_world

FIRST_VERSION, SECOND_VERSION = "demo-v1", "demo-v2"
OLD_TASKS: tuple[str, ...] = ("lookup-1", "translate-1", "order-1", "format-1", "who-1")
NEW_TASKS: tuple[str, ...] = tuple(name for name in TASK_NAMES if name not in OLD_TASKS)
TARGET_TASKS = 2
DEMO_SEED = 300


@dataclass(frozen=True)
class DemoSizes:
    """Numbers of records: `pool` of `demo-v1`; `demo-v2` adds `new_tasks` and `old_tasks`.

    `target` counts the validation records of the two target tasks together.
    """

    pool: int = 160
    new_tasks: int = 75
    old_tasks: int = 25
    heldout_per_task: int = 24
    target: int = 24


@dataclass(frozen=True)
class DemoRecords:
    """The records of both versions, and the right answer of every pool record."""

    pool: list[Record]
    new: list[Record]
    heldout: list[Record]
    new_heldout: list[Record]
    target: list[Record]
    target_tasks: tuple[str, ...]
    truths: list[Truth]


@dataclass(frozen=True)
class DemoFiles:
    """The paths of the files, all in JSON Lines.

    The `first_` files are of `demo-v1`, the `second_` files of `demo-v2`, whose pool begins with
    the first pool. `truth` has the right answer of every pool record by id; it is not ingested.
    """

    first_pool: Path
    first_heldout: Path
    first_target: Path
    second_pool: Path
    second_heldout: Path
    truth: Path
    target_tasks: tuple[str, ...]


DEFAULT_SIZES = DemoSizes()


def make_demo_records(
    seed: int = DEMO_SEED, wrong_share: float = 0.15, sizes: DemoSizes = DEFAULT_SIZES
) -> DemoRecords:
    """Draw the records of both versions.

    Raises:
        ValueError: The sizes are too small or too large for the world.
    """
    world, each = make_world(seed), sizes.heldout_per_task
    pool, truths = make_pool(world, sizes.pool, seed, wrong_share, tasks=OLD_TASKS)
    new, new_truths = pool[:0], truths[:0]
    for offset, size, tasks in ((1, sizes.new_tasks, NEW_TASKS), (2, sizes.old_tasks, OLD_TASKS)):
        more = make_pool(world, size, seed + offset, wrong_share, tasks=tasks, after=[*pool, *new])
        new, new_truths = [*new, *more[0]], [*new_truths, *more[1]]
    facts, new_facts = ({truth["fact"] for truth in known} for known in (truths, new_truths))
    heldout = make_heldout(world, each, seed, tasks=OLD_TASKS, facts=facts)
    first = len(heldout)
    new_heldout = make_heldout(world, each, seed + 1, tasks=NEW_TASKS, facts=new_facts, first=first)
    target_tasks = tuple(sorted(random.Random(f"target {seed}").sample(OLD_TASKS, TARGET_TASKS)))
    target = make_target(world, target_tasks, sizes.target, seed, facts=facts)
    return DemoRecords(
        pool, new, heldout, new_heldout, target, target_tasks, [*truths, *new_truths]
    )


def write_demo_files(
    folder: Path,
    seed: int = DEMO_SEED,
    wrong_share: float = 0.15,
    sizes: DemoSizes = DEFAULT_SIZES,
) -> DemoFiles:
    """Write both versions and the truth as JSON Lines; the same arguments give the same bytes.

    The folder is made if it is missing, and files in it are replaced.

    Raises:
        ValueError: The sizes are too small or too large for the world.
    """
    drawn = make_demo_records(seed, wrong_share, sizes)
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, rows: Iterable[Mapping[str, object]]) -> Path:
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return DemoFiles(
        first_pool=write(FIRST_VERSION, drawn.pool),
        first_heldout=write(f"{FIRST_VERSION}.heldout", drawn.heldout),
        first_target=write(f"{FIRST_VERSION}.target", drawn.target),
        second_pool=write(SECOND_VERSION, [*drawn.pool, *drawn.new]),
        second_heldout=write(f"{SECOND_VERSION}.heldout", [*drawn.heldout, *drawn.new_heldout]),
        truth=write("truth", drawn.truths),
        target_tasks=drawn.target_tasks,
    )
