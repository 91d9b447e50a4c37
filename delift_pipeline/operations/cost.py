"""What a version's arms would cost: pairs, time, disk and training, before any of it is done."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import polars as pl

from delift_pipeline.arms import Arm, Arms, load_arms
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.lineage.artifacts import arm_artifacts, stored_versions
from delift_pipeline.progress import LARGE
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.plan import neighbour_block, read_plan
from delift_pipeline.scoring.rate import pairs_per_second, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.scorable import refuse_unscorable, unscorable_notes
from delift_pipeline.steps.plan import wanted_pairs
from delift_pipeline.steps.score import part_folder, scorable_pairs
from delift_pipeline.steps.subset import refuse_inapplicable
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import read_manifest
from delift_pipeline.training.log import read_training_log

DENSE_BYTES, SPARSE_BYTES = 8, 12
"""Bytes of one pair: two float32 scores, and where pairs are sparse the target's number."""
RECORD_BYTES = 16
TRIED = 64
"""Records of which a trial scores some."""


@dataclass(frozen=True)
class BlockCost:
    """One block of pairs.

    Attributes:
        block: `self`, `target` or `existing`.
        pairs: Pairs wanted; an upper bound where `exact` is False (near pairs not yet found).
        missing: Pairs that are not scored yet.
        exact: Whether `pairs` and `missing` are counted and not bounded.
        dense: Whether every pair is wanted.
    """

    block: str
    pairs: int
    missing: int
    exact: bool
    dense: bool


@dataclass(frozen=True)
class ArmCost:
    """One arm's selection and training.

    Attributes:
        arm: Its name.
        records: Records it would train on at most.
        steps: Optimizer steps.
        seconds: By the step time of earlier trainings with the same model and method; None where
            there was none.
    """

    arm: str
    records: int
    steps: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """What a version or a file would cost.

    Attributes:
        name: The version or file.
        records: Records of the pool.
        blocks: Pairs by block.
        pairs: Pairs missing in all.
        rate: Pairs a second; None where neither stored scores nor a trial say it.
        rate_from: Where the rate comes from.
        seconds: Of scoring; None where the rate is not known.
        disk_bytes: More disk for scores and kernel.
        arms: Training by arm.
        hours: Scoring and training together, as far as both are known.
        gpu: Whether these are hours of a GPU.
        notes: What is not known, and why.
    """

    name: str
    records: int
    blocks: list[BlockCost]
    pairs: int
    rate: float | None
    rate_from: str | None
    seconds: float | None
    disk_bytes: int
    arms: list[ArmCost]
    hours: float | None
    gpu: bool
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The cost as plain data."""
        return asdict(self)


def cost_of_records(
    name: str,
    pool: pl.DataFrame,
    home: Home,
    names: Sequence[str],
    model: ModelOptions | None,
    *,
    measure: bool = True,
) -> Cost:
    """Work out what `delift select` would cost on records; none is held out, nothing is trained.

    Args:
        name: What they are called.
        pool: The records of the files.
        home: The home whose `plan`, arms and scores count.
        names: Arms whose selectors count, in place of the default selector.
        model: The scorer; None leaves time unknown.
        measure: Where no scores are stored, try the model on a few records (loads it).

    Raises:
        Refused: no record can be scored, an arm needs more than a pool, or the model cannot be
            used.
    """
    arms = load_arms(home)
    store, left_out, notes = None, {}, list[str]()
    if model is not None:
        store = ScoreStore(home.scores(fingerprint_of(model).digest))
        left_out, notes = _cannot_be_scored(pool, model)
    blocks = _blocks_of_pool(pool, arms, names, store, left_out)
    return _cost(name, pool, blocks, [], notes, (store, model, measure))


def _blocks_of_pool(
    pool: pl.DataFrame,
    arms: Arms,
    names: Sequence[str],
    store: ScoreStore | None,
    left_out: Mapping[str, str],
) -> list[BlockCost]:
    """The pairs that selectors read of a file; near pairs of a small one are counted."""
    wanted = {_self_pairs(arms.arm(name)) for name in names} or {"neighbours"}
    ids = tuple(pool["record_id"])
    if "all" in wanted:
        return [_counted(PairBlock("self", ids, ids), store, left_out)]
    if "neighbours" not in wanted:
        return []
    if arms.plan.embedder != "tfidf" or len(ids) > LARGE:
        return [_bounded(len(ids), arms.plan.neighbours)]
    near = nearest(embed(prompt_texts(pool), arms.plan.embedder), arms.plan.neighbours)
    return [_counted(neighbour_block(ids, near), store, left_out)]


def _self_pairs(arm: Arm) -> str:
    if arm.stage != "instruction_tuning":
        reason = f"{arm.name} needs more than a pool; ingest the files and plan the version"
        raise Refused(Fault(reason, field="--arm"))
    return needs_of(arm.selector, arm.stage, arm.options).self_pairs


def _cannot_be_scored(pool: pl.DataFrame, model: ModelOptions) -> tuple[dict[str, str], list[str]]:
    """What of a file cannot be scored; of a large one that is not looked up."""
    if pool.height > LARGE:
        return {}, []
    from delift_pipeline.scoring.model import load_encoder

    unscorable = load_encoder(model).encode(pool).unscorable
    refuse_unscorable(pool, unscorable, "records of the file")
    return unscorable, list(unscorable_notes(pool, unscorable, "records"))


def cost_of(
    data: Home,
    version: str,
    home: Home,
    names: Sequence[str],
    model: ModelOptions | None,
    *,
    measure: bool = True,
) -> Cost:
    """Work out what a version's arms would cost.

    Args:
        data: The home that stores the version.
        version: The version.
        home: The home whose arms, scores and earlier trainings count.
        names: Arms; empty for all that are enabled and apply.
        model: The scorer; None leaves time unknown.
        measure: Where no scores are stored, try the model on a few records (loads it).

    Raises:
        Refused: an arm is unknown or does not apply, or the model cannot be used.
    """
    dataset, arms = load_version(data, version), _chosen(load_arms(home), names)
    for arm in arms if names else ():
        refuse_inapplicable(dataset, arm)
    applicable = arms.of_stages(dataset.stages())
    fingerprint = fingerprint_of(model).digest if model else None
    store = ScoreStore(home.scores(fingerprint)) if fingerprint else None
    left_out = _unscorable(data, version, fingerprint)
    blocks, notes = _blocks(data, dataset, arms, store, left_out)
    if left_out:
        notes.append(f"{len(left_out):,} records cannot be scored, and their pairs need not be")
    trained = [_training(home, dataset, arm, fingerprint) for arm in applicable]
    unknown = [one.arm for one in trained if one.seconds is None]
    if unknown:
        notes.append(f"no earlier training tells how long a step takes: {', '.join(unknown)}")
    return _cost(version, dataset.pool, blocks, trained, notes, (store, model, measure))


def _cost(
    name: str,
    pool: pl.DataFrame,
    blocks: list[BlockCost],
    trained: list[ArmCost],
    notes: list[str],
    speed: tuple[ScoreStore | None, ModelOptions | None, bool],
) -> Cost:
    """The cost of pairs and trainings; `speed` is where the rate comes from, see `_rate`."""
    store, model, measure = speed
    rate, rate_from = _rate(pool, store, model, measure)
    missing = sum(block.missing for block in blocks)
    seconds = missing / rate if rate else 0.0 if not missing else None
    if seconds is None:
        notes = [*notes, "no scores with this model are stored, so its speed is not known"]
    return Cost(
        name=name,
        records=pool.height,
        blocks=blocks,
        pairs=missing,
        rate=rate,
        rate_from=rate_from,
        seconds=seconds,
        disk_bytes=_disk(pool.height, blocks),
        arms=trained,
        hours=_hours(seconds, trained),
        gpu=_on_gpu(model),
        notes=notes,
    )


def _chosen(arms: Arms, names: Sequence[str]) -> Arms:
    """The arms asked for; a retired one that is named counts."""
    if not names:
        return arms
    kept = [arms.arm(name).model_copy(update={"enabled": True}) for name in names]
    return replace(arms, arms=tuple(kept))


def _unscorable(home: Home, version: str, fingerprint: str | None) -> dict[str, str]:
    """What an earlier scoring of the version found cannot be scored: record_id -> why."""
    if fingerprint is None:
        return {}
    manifest = read_manifest(part_folder(home, version, fingerprint, "in_context"))
    return manifest.details["unscorable"] if manifest else {}


def _blocks(
    data: Home,
    dataset: DatasetVersion,
    arms: Arms,
    store: ScoreStore | None,
    left_out: dict[str, str],
) -> tuple[list[BlockCost], list[str]]:
    """Pairs by block: counted where a plan of these arms can be had, else bounded."""
    wanted = wanted_pairs(data, dataset, arms)
    ids = tuple(dataset.pool["record_id"])
    blocks: list[BlockCost] = []
    if wanted.self_pairs == "all":
        blocks.append(_counted(PairBlock("self", ids, ids), store, left_out))
    else:
        blocks.append(_near(data, dataset, arms.plan.neighbours, store, left_out))
    if wanted.target_pairs and dataset.target is not None:
        targets = tuple(dataset.target["record_id"])
        blocks.append(_counted(PairBlock("target", targets, ids), store, left_out))
    if wanted.existing is not None:
        new = tuple(dataset.new_records(data)["record_id"])
        known = tuple(wanted.existing["record_id"])
        blocks.append(_counted(PairBlock("existing", new, known), store, left_out))
    if wanted.replay is not None:
        known = tuple(wanted.replay["record_id"])
        blocks.append(_counted(PairBlock("replay", known, known), store, left_out))
    return blocks, list(wanted.notes)


def _counted(block: PairBlock, store: ScoreStore | None, left_out: Mapping[str, str]) -> BlockCost:
    absent = store.missing(PairPlan((block,))).blocks if store else (block,)
    missing = sum(scorable_pairs(one, left_out) for one in absent)
    return BlockCost(block.name, block.pairs, missing, True, block.dense)


def _near(
    data: Home,
    dataset: DatasetVersion,
    neighbours: int,
    store: ScoreStore | None,
    left_out: dict[str, str],
) -> BlockCost:
    """Near pairs: those of the stored plan, else at most both directions of each neighbourhood."""
    manifest = read_manifest(data.plan(dataset.version))
    if manifest and manifest.request.get("neighbours") == neighbours:
        own = read_plan(data.plan(dataset.version)).block("self")
        if own is not None and not own.dense:
            return _counted(own, store, left_out)
    return _bounded(dataset.pool.height, neighbours)


def _bounded(records: int, neighbours: int) -> BlockCost:
    bound = records * min(records - 1, 2 * neighbours)
    return BlockCost("self", bound, bound, False, False)


def _rate(
    pool: pl.DataFrame, store: ScoreStore | None, model: ModelOptions | None, measure: bool
) -> tuple[float | None, str | None]:
    rate = stored_rate(store) if store else None
    if rate:
        return rate, "stored scores"
    if model is None or not measure:
        return None, None
    from delift_pipeline.scoring.engines import engine_for
    from delift_pipeline.scoring.model import load_scorer

    loaded = load_scorer(model)
    unscorable: dict[str, str] = {}
    for some in pool.iter_slices(TRIED):
        encoded = loaded.encoder.encode(some)
        if len(encoded):
            return pairs_per_second(engine_for(loaded), encoded), "a trial on a few records"
        unscorable |= encoded.unscorable
    refuse_unscorable(pool, unscorable, "records of the pool")
    return None, None


def _disk(records: int, blocks: Sequence[BlockCost]) -> int:
    """Scores that are missing (1 % more for the files), and a kernel of every pair wanted."""
    scores = sum(block.missing * _pair_bytes(block) for block in blocks)
    kernel = sum(block.pairs * _pair_bytes(block) for block in blocks)
    return int(scores * 1.01) + kernel + RECORD_BYTES * records


def _pair_bytes(block: BlockCost) -> int:
    return DENSE_BYTES if block.dense else SPARSE_BYTES


def _training(home: Home, dataset: DatasetVersion, arm: Arm, fingerprint: str | None) -> ArmCost:
    whole = dataset.pool if arm.stage != "continual" else None
    pool = dataset.manifest.counts["new"] if whole is None else whole.height
    records = resolve_budget(arm.budget, pool) if pool else 0
    steps = arm.training.total_steps(records) if records else 0
    a_step = _step_seconds(home, fingerprint, arm.training.method, arm.training.records_per_step)
    return ArmCost(arm.name, records, steps, None if a_step is None else steps * a_step)


def _step_seconds(
    home: Home, fingerprint: str | None, method: str, records_per_step: int
) -> float | None:
    """Seconds a step took in earlier trainings of the model, in proportion to its records."""
    seconds, shown = 0.0, 0
    for version in stored_versions(home, "adapter") if fingerprint else ():
        for adapter in arm_artifacts(home, "adapter", version):
            own = adapter.manifest
            if own.fingerprint != fingerprint or own.details.get("method") != method:
                continue
            log = read_training_log(adapter.folder)
            asked = own.request["training"]
            seconds += log.seconds
            shown += log.steps * asked["batch_size"] * asked["accumulation"]
    return seconds / shown * records_per_step if shown else None


def _hours(seconds: float | None, arms: Sequence[ArmCost]) -> float | None:
    known = [one.seconds for one in arms]
    if seconds is None or None in known:
        return None
    return (seconds + sum(one for one in known if one is not None)) / 3600


def _on_gpu(model: ModelOptions | None) -> bool:
    if model is None or model.device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()
