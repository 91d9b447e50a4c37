"""The stage behind `pair_plan`: which pairs the enabled arms of a version need."""

from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, up_to_date
from delift_pipeline.core.progress import Progress, SilentProgress, tracked
from delift_pipeline.lineage.version import existing_of
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.plan import SelfPairs, build_plan, write_plan
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.stages.arms import Arms, PlanOptions
from delift_pipeline.stages.result import Result, required_manifest

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


@dataclass(frozen=True)
class Planned(Result):
    """A stored plan, and what the arms read that it was made for."""

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

    It is made for the enabled arms that apply to the version. `near_for_trust` plans near pairs
    where no arm reads them.

    Raises:
        Refused: the version is unknown or the embedder cannot be loaded.
    """
    dataset, folder = load_version(home, version), home.plan(version)
    wanted = wanted_pairs(home, dataset, arms, near_for_trust)
    existing, replay = wanted.existing, wanted.replay
    request = {
        "self_pairs": wanted.self_pairs,
        "target_pairs": wanted.target_pairs,
        "existing": digest_text(*existing["record_id"]) if existing is not None else None,
        "neighbours": arms.plan.neighbours,
        "embedder": arms.plan.embedder,
        **({"replay": digest_text(*replay["record_id"])} if replay is not None else {}),
    }
    parents = {f"dataset:{version}": dataset.manifest.content_hash, **wanted.parents}
    if manifest := up_to_date(folder, request, parents, CODE_VERSION):
        return Planned(home, folder, manifest, True, wanted)
    neighbours = None
    if wanted.self_pairs != "none":
        embeddings = embed(prompt_texts(dataset.pool), arms.plan.embedder)
        shown = progress or SilentProgress()
        with tracked(shown, "near prompts", dataset.pool.height, "records") as meter:
            neighbours = nearest(embeddings, arms.plan.neighbours, meter.advance)
    plan = build_plan(
        dataset.pool,
        dataset.target,
        existing,
        self_pairs=wanted.self_pairs,
        target_pairs=wanted.target_pairs,
        existing_pairs=existing is not None,
        neighbours=neighbours,
        existing_rows=dataset.new_records(home) if existing is not None else None,
        replay=replay,
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
    return Planned(home, folder, manifest, False, wanted)


def planned_manifest(home: Home, version: str) -> Manifest:
    """The manifest of a version's plan.

    Raises:
        DeliftError: there is none yet.
    """
    reason = f"{version} has no pair plan yet: materialise pair_plan first"
    return required_manifest(home.plan(version), reason)


def wanted_pairs(
    home: Home, dataset: DatasetVersion, arms: Arms, near_for_trust: bool = True
) -> Wanted:
    """Unite what the enabled arms that apply to a version read."""
    needs = [
        (arm.name, needs_of(arm.selector, arm.stage, arm.options))
        for arm in arms.of_stages(dataset.stages())
    ]
    dense = [name for name, need in needs if need.self_pairs == "all"]
    why = too_dear(dataset, dataset.pool.height, arms.plan)
    self_pairs: SelfPairs = "neighbours"
    if why is None and (dense or _coverage(dataset, arms.plan) == "all"):
        self_pairs, dense = "all", []
    elif not near_for_trust and all(need.self_pairs == "none" for _, need in needs):
        self_pairs = "none"
    notes = [f"{name} needs every pair, which is not planned ({why})" for name in dense]
    existing, replay = list[pl.DataFrame](), list[pl.DataFrame]()
    replay_notes, parents = list[str](), dict[str, str]()
    for name, need in needs:
        if not (need.existing_pairs or need.replay_pairs):
            continue
        try:
            found = existing_of(home, dataset, name)
        except Refused as refused:
            notes.append(str(refused))
            continue
        parents |= found.parents
        existing += [found.records] * need.existing_pairs
        if need.replay_pairs:
            why = too_dear(dataset, found.records.height, arms.plan)
            said = f"{name} replays, and pairs of existing records are not planned ({why})"
            replay_notes += [said] if why else []
            replay += [] if why else [found.records]
    return Wanted(
        self_pairs=self_pairs,
        target_pairs=any(need.target_pairs for _, need in needs),
        existing=_each_once(existing),
        replay=_each_once(replay),
        parents=parents,
        notes=(*notes, *replay_notes),
    )


def _each_once(frames: list[pl.DataFrame]) -> pl.DataFrame | None:
    return pl.concat(frames).unique("record_id", maintain_order=True) if frames else None


def _coverage(dataset: DatasetVersion, plan: PlanOptions) -> str:
    """Which pairs are scored: what the plan says, else what the version says."""
    return plan.coverage or dataset.manifest.details["coverage"]


def too_dear(dataset: DatasetVersion, n: int, plan: PlanOptions) -> str | None:
    """Why every pair of n records is not planned though an arm needs it; None where it is."""
    coverage = _coverage(dataset, plan)
    if coverage == "neighbours":
        return "coverage is neighbours"
    return None if coverage == "all" or n <= plan.dense_limit else f"{n:,} > {plan.dense_limit:,}"
