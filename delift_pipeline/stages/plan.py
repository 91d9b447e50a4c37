"""The stage behind `pair_plan`: plan the pairs that the enabled arms of a version need."""

from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, up_to_date
from delift_pipeline.core.progress import Progress, SilentProgress, track_large
from delift_pipeline.lineage.version import find_existing_records
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.plan import SelfPairs, build_plan, write_plan
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.stages.arms import Arms, PlanOptions
from delift_pipeline.stages.result import Result, required_manifest

CODE_VERSION = "1"


@dataclass(frozen=True)
class PlanInputs:
    """What the arms of a version read together: the enabled ones that apply to it.

    Attributes:
        self_pairs: `all` where an arm needs every pair and may have it, else `neighbours`; `none`
            where no arm reads near pairs and `near_for_trust` does not ask for them.
        target_pairs: Whether an arm reads D_T x D.
        existing: D_E of all continual arms together; None where no arm reads it.
        replay: D_E of the arms that replay from it; None where no arm does, or may.
        parents: The name of each artifact that D_E was read from, with its hash.
        notes: One sentence for each arm whose pairs are not planned, with the reason.
    """

    self_pairs: SelfPairs
    target_pairs: bool
    existing: pl.DataFrame | None = field(repr=False)
    replay: pl.DataFrame | None = field(repr=False)
    parents: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PlanResult(Result):
    """A stored pair plan, and the inputs it was made for."""

    inputs: PlanInputs


def plan_pairs(
    home: Home,
    version: str,
    arms: Arms,
    run_id: str | None = None,
    *,
    progress: Progress | None = None,
    near_for_trust: bool = True,
) -> PlanResult:
    """Plan the version's pairs, unless the same plan is stored.

    The plan serves the enabled arms that apply to the version. `near_for_trust` plans near pairs
    for the trust of records, even if no arm reads them.

    Raises:
        InputError: the version is unknown or the embedder cannot be loaded.
    """
    dataset, folder = load_version(home, version), home.plan(version)
    inputs = plan_inputs(home, dataset, arms, near_for_trust)
    existing, replay = inputs.existing, inputs.replay
    request = {
        "self_pairs": inputs.self_pairs,
        "target_pairs": inputs.target_pairs,
        "existing": digest_text(*existing["record_id"]) if existing is not None else None,
        "neighbours": arms.plan.neighbours,
        "embedder": arms.plan.embedder,
        **({"replay": digest_text(*replay["record_id"])} if replay is not None else {}),
    }
    parents = {f"dataset:{version}": dataset.manifest.content_hash, **inputs.parents}
    if manifest := up_to_date(folder, request, parents, CODE_VERSION):
        return PlanResult(home, folder, manifest, True, inputs)
    neighbours = None
    if inputs.self_pairs != "none":
        embeddings = embed(prompt_texts(dataset.pool), arms.plan.embedder)
        bar = progress or SilentProgress()
        with track_large(bar, "near prompts", dataset.pool.height, "records") as meter:
            neighbours = nearest(embeddings, arms.plan.neighbours, meter.advance)
    plan = build_plan(
        dataset.pool,
        dataset.target,
        existing,
        self_pairs=inputs.self_pairs,
        target_pairs=inputs.target_pairs,
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
    return PlanResult(home, folder, manifest, False, inputs)


def plan_manifest(home: Home, version: str) -> Manifest:
    """Return the manifest of a version's pair plan.

    Raises:
        DeliftError: the version has no plan yet.
    """
    reason = f"{version} has no pair plan yet. Materialise pair_plan first"
    return required_manifest(home.plan(version), reason)


def plan_inputs(
    home: Home, dataset: DatasetVersion, arms: Arms, near_for_trust: bool = True
) -> PlanInputs:
    """Collect what the enabled arms that apply to a version read."""
    needs = [
        (arm.name, needs_of(arm.selector, arm.stage, arm.options))
        for arm in arms.of_stages(dataset.stages())
    ]
    dense = [name for name, need in needs if need.self_pairs == "all"]
    why = reason_not_dense(dataset, dataset.pool.height, arms.plan)
    self_pairs: SelfPairs = "neighbours"
    if why is None and (dense or _coverage(dataset, arms.plan) == "all"):
        self_pairs, dense = "all", []
    elif not near_for_trust and all(need.self_pairs == "none" for _, need in needs):
        self_pairs = "none"
    notes = [f"{name} needs every pair, but not every pair is planned ({why})" for name in dense]
    existing, replay = list[pl.DataFrame](), list[pl.DataFrame]()
    replay_notes, parents = list[str](), dict[str, str]()
    for name, need in needs:
        if not (need.existing_pairs or need.replay_pairs):
            continue
        try:
            existing_records = find_existing_records(home, dataset, name)
        except InputError as refused:
            notes.append(str(refused))
            continue
        parents |= existing_records.parents
        records = existing_records.records
        existing += [records] * need.existing_pairs
        if need.replay_pairs:
            why = reason_not_dense(dataset, records.height, arms.plan)
            note = f"{name} replays, but pairs of existing records are not planned ({why})"
            replay_notes += [note] if why else []
            replay += [] if why else [records]
    return PlanInputs(
        self_pairs=self_pairs,
        target_pairs=any(need.target_pairs for _, need in needs),
        existing=_unique_records(existing),
        replay=_unique_records(replay),
        parents=parents,
        notes=(*notes, *replay_notes),
    )


def _unique_records(frames: list[pl.DataFrame]) -> pl.DataFrame | None:
    return pl.concat(frames).unique("record_id", maintain_order=True) if frames else None


def _coverage(dataset: DatasetVersion, plan: PlanOptions) -> str:
    """Return which pairs are planned: the value of `arms.yaml`, else that of the version."""
    return plan.coverage or dataset.manifest.details["coverage"]


def reason_not_dense(dataset: DatasetVersion, n: int, plan: PlanOptions) -> str | None:
    """Say why not every pair of n records is planned for an arm that needs it; None if it is."""
    coverage = _coverage(dataset, plan)
    if coverage == "neighbours":
        return "coverage is neighbours"
    if coverage == "all" or n <= plan.dense_limit:
        return None
    return f"{n:,} records are more than dense_limit {plan.dense_limit:,}"
