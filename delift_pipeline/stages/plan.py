"""The stage behind `pair_plan`: which pairs the enabled arms of a version need."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.core.progress import Progress, SilentProgress, tracked
from delift_pipeline.lineage.existing import existing_of
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.plan import SelfPairs, build_plan, write_plan
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.selector import Needs
from delift_pipeline.stages.arms import Arm, Arms, PlanOptions
from delift_pipeline.stages.result import Result

CODE_VERSION = "1"


@dataclass(frozen=True)
class Wanted:
    """What the enabled, applicable arms of a version read together.

    Attributes:
        self_pairs: `all` where an arm needs every pair and may have it, else `neighbours`; `none`
            where no arm reads near pairs and they are not wanted for their own sake.
        target_pairs: Whether D_T x D is wanted.
        existing: D_E of all continual arms together; None where none is wanted.
        replay: D_E of the arms that replay from it; None where none does, or may.
        parents: Artifacts that D_E was read from -> hash.
        notes: Sentences on arms whose pairs are not planned, and why.
    """

    self_pairs: SelfPairs
    target_pairs: bool
    existing: pl.DataFrame | None = field(repr=False)
    replay: pl.DataFrame | None = field(repr=False)
    parents: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Planned(Result):
    """A stored plan, and what it was made for.

    Attributes:
        wanted: What the arms read.
    """

    wanted: Wanted


def plan_pairs(
    home: Home,
    version: str,
    arms: Arms,
    run_id: str | None = None,
    *,
    progress: Progress | None = None,
    near_for_trust: bool = True,
) -> Planned:
    """Plan the version's pairs, unless the same plan is stored.

    Args:
        home: The home.
        version: The dataset version.
        arms: The enabled ones that apply to the version are planned for.
        run_id: Of the Dagster run, for the manifest.
        progress: Where the search for near prompts is shown.
        near_for_trust: Whether near pairs are planned where no arm reads them.

    Raises:
        Refused: the version is unknown or the embedder cannot be loaded.
    """
    dataset, folder = load_version(home, version), home.plan(version)
    wanted = wanted_pairs(home, dataset, arms, near_for_trust)
    request = _request(wanted, arms.plan)
    parents = {f"dataset:{version}": dataset.manifest.content_hash, **wanted.parents}
    manifest = up_to_date(folder, request, parents, CODE_VERSION)
    reused = manifest is not None
    if manifest is None:
        neighbours = None
        if wanted.self_pairs != "none":
            embeddings = embed(prompt_texts(dataset.pool), arms.plan.embedder)
            shown = progress or SilentProgress()
            with tracked(shown, "near prompts", dataset.pool.height, "records") as meter:
                neighbours = nearest(embeddings, arms.plan.neighbours, meter.advance)
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
    return Planned(home=home, folder=folder, manifest=manifest, reused=reused, wanted=wanted)


def planned_manifest(home: Home, version: str) -> Manifest:
    """The manifest of a version's plan.

    Raises:
        DeliftError: there is none yet.
    """
    manifest = read_manifest(home.plan(version))
    if manifest is None:
        raise DeliftError(f"{version} has no pair plan yet: materialise pair_plan first")
    return manifest


def wanted_pairs(
    home: Home, dataset: DatasetVersion, arms: Arms, near_for_trust: bool = True
) -> Wanted:
    """Unite what the enabled arms that apply to a version read."""
    applicable = arms.of_stages(dataset.stages())
    needs = [(arm, needs_of(arm.selector, arm.stage, arm.options)) for arm in applicable]
    self_pairs, notes = _self_pairs(dataset, needs, arms.plan, near_for_trust)
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
    dataset: DatasetVersion,
    needs: list[tuple[Arm, Needs]],
    plan: PlanOptions,
    near_for_trust: bool,
) -> tuple[SelfPairs, list[str]]:
    dense = [arm.name for arm, need in needs if need.self_pairs == "all"]
    why = too_dear(dataset, dataset.pool.height, plan)
    if why is None and (dense or coverage_of(dataset, plan) == "all"):
        return "all", []
    if not near_for_trust and all(need.self_pairs == "none" for _, need in needs):
        return "none", []
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


def _request(wanted: Wanted, plan: PlanOptions) -> dict[str, Any]:
    existing, replay = wanted.existing, wanted.replay
    return {
        "self_pairs": wanted.self_pairs,
        "target_pairs": wanted.target_pairs,
        "existing": digest_text(*existing["record_id"]) if existing is not None else None,
        "neighbours": plan.neighbours,
        "embedder": plan.embedder,
        **({"replay": digest_text(*replay["record_id"])} if replay is not None else {}),
    }
