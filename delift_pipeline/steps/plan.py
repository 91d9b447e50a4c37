"""The step behind `pair_plan`: which pairs the enabled arms of a version need."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from delift_pipeline.arms import Arm, Arms, PlanOptions
from delift_pipeline.errors import Refused
from delift_pipeline.lineage.existing import existing_of
from delift_pipeline.plots import histogram_png
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.plan import build_plan, read_plan, write_plan
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.selector import Needs
from delift_pipeline.steps.outcome import PREVIEW_ROWS, Check, Outcome, kept_plot
from delift_pipeline.storage.hashing import digest_text
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, up_to_date

CODE_VERSION = "1"


@dataclass(frozen=True)
class Wanted:
    """What the enabled, applicable arms of a version read together.

    Attributes:
        self_pairs: `all` where an arm needs every pair and may have it, else `neighbours`.
        target_pairs: Whether D_T x D is wanted.
        existing: D_E of all continual arms together; None where none is wanted.
        replay: D_E of the arms that replay from it; None where none does, or may.
        parents: Artifacts that D_E was read from -> hash.
        notes: Sentences on arms whose pairs are not planned, and why.
    """

    self_pairs: Literal["neighbours", "all"]
    target_pairs: bool
    existing: pl.DataFrame | None = field(repr=False)
    replay: pl.DataFrame | None = field(repr=False)
    parents: dict[str, str]
    notes: tuple[str, ...]


def plan_pairs(home: Home, version: str, arms: Arms, run_id: str | None = None) -> Outcome:
    """Plan the version's pairs, unless the same plan is stored.

    Raises:
        Refused: the version is unknown or the embedder cannot be loaded.
    """
    dataset = load_version(home, version)
    wanted = wanted_pairs(home, dataset, arms)
    request = _request(wanted, arms.plan)
    parents = {f"dataset:{version}": dataset.manifest.content_hash, **wanted.parents}
    stored = up_to_date(home.plan(version), request, parents, CODE_VERSION)
    manifest = stored or _make(home, dataset, wanted, arms.plan, request, parents, run_id)
    return _outcome(home, version, manifest, wanted, stored is not None)


def wanted_pairs(home: Home, dataset: DatasetVersion, arms: Arms) -> Wanted:
    """Unite what the enabled arms that apply to a version read."""
    applicable = arms.of_stages(dataset.stages())
    needs = [(arm, needs_of(arm.selector, arm.stage, arm.options)) for arm in applicable]
    self_pairs, notes = _self_pairs(dataset, needs, arms.plan)
    found, parents, unresolved = _existing(home, dataset, needs)
    replay, dear = _replay(dataset, found, needs, arms.plan)
    return Wanted(
        self_pairs=self_pairs,
        target_pairs=any(need.target_pairs for _, need in needs),
        existing=_united(
            [found[a.name] for a, need in needs if need.existing_pairs and a.name in found]
        ),
        replay=replay,
        parents=parents,
        notes=(*notes, *unresolved, *dear),
    )


def _self_pairs(
    dataset: DatasetVersion, needs: list[tuple[Arm, Needs]], plan: PlanOptions
) -> tuple[Literal["neighbours", "all"], list[str]]:
    dense = [arm.name for arm, need in needs if need.self_pairs == "all"]
    why = too_dear(dataset, dataset.pool.height, plan)
    if why is None and (dense or coverage_of(dataset, plan) == "all"):
        return "all", []
    return "neighbours", [
        f"{name} needs every pair, which is not planned ({why})" for name in dense
    ]


def coverage_of(dataset: DatasetVersion, plan: PlanOptions) -> str:
    """Which pairs are scored: the plan's own word, else the version's."""
    return plan.coverage or dataset.manifest.details["coverage"]


def too_dear(dataset: DatasetVersion, n: int, plan: PlanOptions) -> str | None:
    """Why every pair of n records is not planned though an arm needs it; None where it is."""
    coverage = coverage_of(dataset, plan)
    if coverage == "neighbours":
        return "coverage is neighbours"
    return None if coverage == "all" or n <= plan.dense_limit else f"{n:,} > {plan.dense_limit:,}"


def _existing(
    home: Home, dataset: DatasetVersion, needs: list[tuple[Arm, Needs]]
) -> tuple[dict[str, pl.DataFrame], dict[str, str], list[str]]:
    """D_E by arm, what it was read from, and why arms have none yet."""
    frames: dict[str, pl.DataFrame] = {}
    parents: dict[str, str] = {}
    notes: list[str] = []
    for arm in (arm for arm, need in needs if need.existing_pairs or need.replay_pairs):
        try:
            found = existing_of(home, dataset, arm.name)
        except Refused as refused:
            notes.append(str(refused))
            continue
        frames[arm.name] = found.records
        parents |= found.parents
    return frames, parents, notes


def _replay(
    dataset: DatasetVersion,
    existing: dict[str, pl.DataFrame],
    needs: list[tuple[Arm, Needs]],
    plan: PlanOptions,
) -> tuple[pl.DataFrame | None, list[str]]:
    """The existing records whose every pair is scored for replay, and whose cannot be."""
    frames, notes = [], []
    for arm in (arm for arm, need in needs if need.replay_pairs and arm.name in existing):
        records = existing[arm.name]
        if why := too_dear(dataset, records.height, plan):
            notes.append(
                f"{arm.name} replays, and pairs of existing records are not planned ({why})"
            )
        else:
            frames.append(records)
    return _united(frames), notes


def _united(frames: list[pl.DataFrame]) -> pl.DataFrame | None:
    """The records of several frames, each once; None of no frames."""
    return pl.concat(frames).unique("record_id", maintain_order=True) if frames else None


def _request(wanted: Wanted, plan: PlanOptions) -> dict[str, object]:
    existing, replay = wanted.existing, wanted.replay
    return {
        "self_pairs": wanted.self_pairs,
        "target_pairs": wanted.target_pairs,
        "existing": digest_text(*existing["record_id"]) if existing is not None else None,
        "neighbours": plan.neighbours,
        "embedder": plan.embedder,
        **({"replay": digest_text(*replay["record_id"])} if replay is not None else {}),
    }


def _make(
    home: Home,
    dataset: DatasetVersion,
    wanted: Wanted,
    options: PlanOptions,
    request: dict[str, object],
    parents: dict[str, str],
    run_id: str | None,
) -> Manifest:
    neighbours = nearest(embed(prompt_texts(dataset.pool), options.embedder), options.neighbours)
    plan = build_plan(
        dataset.pool,
        dataset.target,
        wanted.existing,
        self_pairs=wanted.self_pairs,
        target_pairs=wanted.target_pairs,
        existing_pairs=wanted.existing is not None,
        neighbours=neighbours,
        existing_rows=dataset.new_records(home) if wanted.existing is not None else None,
        replay=wanted.replay,
    )
    folder = home.plan(dataset.version)
    manifest = write_plan(
        folder,
        plan,
        pool=dataset.pool,
        neighbours=neighbours,
        request=request,
        parents=parents,
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    return manifest


def _outcome(home: Home, version: str, manifest: Manifest, wanted: Wanted, reused: bool) -> Outcome:
    folder = home.plan(version)
    plan = read_plan(folder)
    alone = manifest.counts["without_neighbours"]
    blocks = pl.DataFrame(
        [
            {
                "block": b.name,
                "targets": len(b.targets),
                "demonstrations": len(b.demonstrations),
                "pairs": b.pairs,
                "form": "all" if b.dense else "neighbours",
            }
            for b in plan.blocks
        ]
    )
    lonely = pl.read_parquet(folder / "records.parquet").filter(pl.col("neighbours") == 0)
    unexplained = lonely.filter(pl.col("reason").is_null()).height
    tables = {"blocks": blocks}
    if wanted.notes:
        tables["arms whose pairs are not planned"] = pl.DataFrame({"why": list(wanted.notes)})
    if lonely.height:
        tables["records without neighbours"] = lonely.head(PREVIEW_ROWS)
    return Outcome(
        manifest=manifest,
        path=folder.relative_to(home.root).as_posix(),
        reused=reused,
        facts={**manifest.counts, "coverage": wanted.self_pairs},
        plots={"neighbours": kept_plot(folder / "neighbours.png", lambda: _neighbours_png(folder))},
        tables=tables,
        checks={
            "neighbours": Check(
                unexplained == 0,
                f"{alone} records have no neighbours, {unexplained} of them without a reason",
                {"without_neighbours": alone},
            )
        },
    )


def _neighbours_png(folder: Path) -> bytes:
    counts = pl.read_parquet(folder / "records.parquet")["neighbours"].to_numpy()
    return histogram_png(counts, "records of the pool", "near prompts found")
