"""Estimate the cost of a version's arms before any work: pairs, time, disk and training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.core.progress import LARGE
from delift_pipeline.lineage.artifacts import arm_artifacts, stored_versions
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model_files import model_folder
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan, neighbour_block, read_plan
from delift_pipeline.scoring.report import pairs_per_second, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.template_choice import choose_template
from delift_pipeline.selection.budget import resolve_budget
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.run import refuse_unscorable, unscorable_notes
from delift_pipeline.stages.arms import Arm, Arms, load_arms
from delift_pipeline.stages.plan import plan_inputs, reason_not_dense
from delift_pipeline.stages.score import PASSES, missing_passes, scorable_pairs, unscorable_of
from delift_pipeline.stages.subset import refuse_inapplicable
from delift_pipeline.training.log import read_training_log

DENSE_BYTES, SPARSE_BYTES = 8, 12
"""Bytes of one pair: two float32 scores, and in a sparse kernel also the target's number."""
PASS_BYTES = 18
"""Bytes of one pass over an answer alone: on average one and a half scores, each with 12 bytes."""
RECORD_BYTES = 16
TRIED = 64
"""A trial takes this many records at a time until some can be scored."""


@dataclass(frozen=True)
class BlockCost:
    """One block of pairs.

    Attributes:
        block: `self`, `target`, `existing` or `replay`.
        pairs: Pairs needed; an upper bound if `exact` is False (near pairs are not known yet).
        missing: Pairs that are not scored yet; also an upper bound then.
        dense: Whether every pair is needed.
    """

    block: str
    pairs: int
    missing: int
    exact: bool
    dense: bool


@dataclass(frozen=True)
class ArmCost:
    """The cost of one arm's training.

    Attributes:
        records: The most records it would train on.
        seconds: Estimated from earlier trainings with the same model and method; None if there are
            none.
    """

    arm: str
    records: int
    steps: int
    seconds: float | None


@dataclass(frozen=True)
class DisabledCost:
    """What scoring would cost if a disabled arm that applies were enabled beside the others.

    Attributes:
        pairs: Pairs that would not be scored yet, in all blocks, those of the other arms included.
        seconds: Time of scoring; None if the rate is not known.
    """

    arm: str
    pairs: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a version or a file.

    Attributes:
        pairs: Pairs that are not scored yet, in all blocks.
        template: The name of the prompt template; None without a model.
        passes: Passes over answers without a demonstration that are not done yet: two a record,
            with and without its prompt. A pass takes the time of a pair.
        rate: Pairs per second; None if neither stored scores nor a trial show it.
        seconds: Time of scoring; None if the rate is not known.
        disk_bytes: Additional disk space for scores and kernel.
        hours: Scoring and training together; None if one of them is not known.
        gpu: Whether these are hours of a GPU.
        disabled: Only if no arm was named: what disabled arms would cost.
    """

    name: str
    records: int
    blocks: list[BlockCost]
    pairs: int
    template: str | None
    rate: float | None
    rate_from: str | None
    seconds: float | None
    disk_bytes: int
    arms: list[ArmCost]
    hours: float | None
    gpu: bool
    notes: list[str]
    disabled: list[DisabledCost]
    passes: int


def cost_of_records(
    name: str,
    pool: pl.DataFrame,
    home: Home,
    names: Sequence[str],
    model: ModelOptions | None,
    *,
    measure: bool,
) -> Cost:
    """Estimate the cost of `delift select` on records, without held-out set and training.

    With `names`, the selectors of these arms count instead of the default selector. Without `names`
    the estimate also prices disabled arms. Without a model the time is not known. With `measure`,
    the model is tried on a few records if no scores are stored.

    Raises:
        InputError: no record can be scored, an arm needs more than a pool, or the model cannot be
            used.
    """
    arms, store = load_arms(home), _store(home, model)
    left_out, notes = dict[str, str](), list[str]()
    if model is not None and pool.height <= LARGE:
        from delift_pipeline.scoring.model import load_encoder

        left_out = load_encoder(model).encode(pool).unscorable
        refuse_unscorable(pool, left_out, "records of the file")
        notes += unscorable_notes(pool, left_out, "records")
    ids, plan, kinds, blocks = tuple(pool["record_id"]), arms.plan, set[str](), list[BlockCost]()
    support = False
    for arm in map(arms.arm, names):
        if arm.stage != "instruction_tuning":
            reason = f"{arm.name} needs more than a pool. Ingest the files and plan the version."
            raise InputError(reason, field="--arm")
        needs = needs_of(arm.selector, arm.stage, arm.options)
        kinds.add(needs.self_pairs)
        support |= needs.support
    if "all" in kinds:
        blocks = [_count_block(PairBlock("self", ids, ids), store, left_out)]
    elif not names or "neighbours" in kinds:
        if plan.embedder != "tfidf" or len(ids) > LARGE:
            blocks = [_bound_near_pairs(len(ids), plan.neighbours)]
        else:
            near = nearest(embed(prompt_texts(pool), plan.embedder), plan.neighbours)
            blocks = [_count_block(neighbour_block(ids, near), store, left_out)]
    disabled = dict[str, int]()
    for arm in arms.list_disabled(("instruction_tuning",)) if not names else []:
        if needs_of(arm.selector, arm.stage, arm.options).self_pairs == "all":
            every = _count_block(PairBlock("self", ids, ids), store, left_out)
            disabled[arm.name] = every.missing
    passes = _count_passes(ids, store, left_out) if blocks or support else 0
    return _cost(name, pool, blocks, [], notes, store, model, measure, disabled, passes)


def cost_of(
    home: Home,
    version: str,
    names: Sequence[str],
    model: ModelOptions | None,
    *,
    measure: bool = True,
) -> Cost:
    """Estimate the cost of a version's arms.

    Without `names` these are all enabled arms that apply, and the estimate also says what each
    disabled arm that applies would cost. A disabled arm counts if it is named.
    `model` and `measure` are as for `cost_of_records`.

    Raises:
        InputError: an arm is unknown or does not apply, or the model cannot be used.
    """
    dataset, arms = load_version(home, version), load_arms(home)
    if names:
        chosen = (arms.arm(name).model_copy(update={"enabled": True}) for name in names)
        arms = replace(arms, arms=tuple(chosen))
        for arm in arms:
            refuse_inapplicable(dataset, arm)
    store = _store(home, model)
    fingerprint = store and store.folder.name
    left_out = unscorable_of(home, version, fingerprint)
    blocks, notes = _blocks(home, dataset, arms, store, left_out)
    if left_out:
        notes.append(f"{len(left_out):,} records cannot be scored, so their pairs are not counted")
    applicable = arms.of_stages(dataset.stages())
    trained = [_training(home, dataset, arm, fingerprint) for arm in applicable]
    if unknown := [one.arm for one in trained if one.seconds is None]:
        notes.append(f"no earlier training tells how long a step takes: {', '.join(unknown)}")
    disabled = dict[str, int]()
    every = arms.plan.model_copy(update={"coverage": "all"})
    for arm in arms.list_disabled(dataset.stages()) if not names else []:
        dense = needs_of(arm.selector, arm.stage, arm.options).self_pairs == "all"
        added = (*arms, arm.model_copy(update={"enabled": True}))
        with_it = replace(arms, arms=added, plan=every if dense else arms.plan)
        more, _ = _blocks(home, dataset, with_it, store, left_out)
        disabled[arm.name] = sum(block.missing for block in more)
        why = reason_not_dense(dataset, dataset.pool.height, arms.plan)
        if dense and why:
            notes.append(f"{arm.name} also needs plan.coverage: all ({why})")
    targets = dataset.target if any(block.block == "target" for block in blocks) else None
    ids = [*dataset.pool["record_id"], *([] if targets is None else targets["record_id"])]
    passes = _count_passes(ids, store, left_out)
    settings = (store, model, measure, disabled, passes)
    return _cost(version, dataset.pool, blocks, trained, notes, *settings)


def _store(home: Home, model: ModelOptions | None) -> ScoreStore | None:
    return ScoreStore(home.scores(fingerprint_of(model).digest)) if model else None


def _cost(
    name: str,
    pool: pl.DataFrame,
    blocks: list[BlockCost],
    arms: list[ArmCost],
    notes: list[str],
    store: ScoreStore | None,
    model: ModelOptions | None,
    measure: bool,
    disabled: Mapping[str, int],
    passes: int,
) -> Cost:
    """Estimate the cost of scoring and trainings, from the speed of stored scores or of a trial."""
    template = fingerprint_of(model).template if model else None
    if model is not None:
        notes = [*choose_template(model, model_folder(model)).notes, *notes]
    rate, rate_from = stored_rate(store) if store else None, "stored scores"
    if not rate and model is not None and measure:
        rate, rate_from = _trial_rate(pool, model), "a trial on a few records"
    pairs = sum(block.missing for block in blocks)
    seconds = (pairs + passes) / rate if rate else 0.0 if not pairs + passes else None
    if seconds is None:
        notes = [*notes, "no scores with this model are stored, so its speed is not known"]
    # Missing scores (1 % more for the files), and a kernel of all pairs that are needed.
    sizes = [(DENSE_BYTES if block.dense else SPARSE_BYTES, block) for block in blocks]
    missing_bytes = sum(size * block.missing for size, block in sizes) + PASS_BYTES * passes
    disk_bytes = int(1.01 * missing_bytes)
    disk_bytes += sum(size * block.pairs for size, block in sizes) + RECORD_BYTES * pool.height
    gpu = False
    if model is not None and model.device != "cpu":
        import torch

        gpu = torch.cuda.is_available()
    times = [seconds, *(arm.seconds for arm in arms)]
    known = [one for one in times if one is not None]
    hours = sum(known) / 3600 if len(known) == len(times) else None
    speed = (template, rate, rate_from if rate else None, seconds)
    extra = [
        DisabledCost(arm, more, (more + passes) / rate if rate else None)
        for arm, more in disabled.items()
    ]
    about = (disk_bytes, arms, hours, gpu, notes, extra, passes)
    return Cost(name, pool.height, blocks, pairs, *speed, *about)


def _blocks(
    home: Home,
    dataset: DatasetVersion,
    arms: Arms,
    store: ScoreStore | None,
    left_out: dict[str, str],
) -> tuple[list[BlockCost], list[str]]:
    """Count pairs by block; without a plan of as many neighbours, give an upper bound."""
    inputs = plan_inputs(home, dataset, arms)
    ids = tuple(dataset.pool["record_id"])
    folder = home.plan(dataset.version)
    plan, near = read_manifest(folder), None
    if inputs.self_pairs == "all":
        near = PairBlock("self", ids, ids)
    elif plan is not None and plan.request.get("neighbours") == arms.plan.neighbours:
        near = read_plan(folder).block("self")
        near = None if near is None or near.dense else near
    exact = [near] if near else []
    bounds = [] if near else [_bound_near_pairs(len(ids), arms.plan.neighbours)]
    if inputs.target_pairs and dataset.target is not None:
        exact.append(PairBlock("target", tuple(dataset.target["record_id"]), ids))
    if inputs.existing is not None:
        new = tuple(dataset.new_records(home)["record_id"])
        exact.append(PairBlock("existing", new, tuple(inputs.existing["record_id"])))
    if inputs.replay is not None:
        known = tuple(inputs.replay["record_id"])
        exact.append(PairBlock("replay", known, known))
    return [*bounds, *(_count_block(one, store, left_out) for one in exact)], list(inputs.notes)


def _count_block(
    block: PairBlock, store: ScoreStore | None, left_out: Mapping[str, str]
) -> BlockCost:
    absent = store.missing(PairPlan((block,))).blocks if store else (block,)
    missing = sum(scorable_pairs(one, left_out) for one in absent)
    return BlockCost(block.name, block.pairs, missing, True, block.dense)


def _count_passes(
    record_ids: Sequence[str], store: ScoreStore | None, left_out: Mapping[str, str]
) -> int:
    scorable = [record for record in record_ids if record not in left_out]
    return missing_passes(store, scorable) if store else PASSES * len(scorable)


def _bound_near_pairs(records: int, neighbours: int) -> BlockCost:
    """Return an upper bound: a record's neighbours may not have it as a neighbour in turn."""
    bound = records * min(records - 1, 2 * neighbours)
    return BlockCost("self", bound, bound, False, False)


def _trial_rate(pool: pl.DataFrame, model: ModelOptions) -> float | None:
    """Load the model and return its pairs per second on the first records it can score."""
    from delift_pipeline.scoring.engines import engine_for
    from delift_pipeline.scoring.model import load_scorer

    loaded = load_scorer(model)
    unscorable: dict[str, str] = {}
    for some in pool.iter_slices(TRIED):
        encoded = loaded.encoder.encode(some)
        if len(encoded):
            return pairs_per_second(engine_for(loaded), encoded)
        unscorable |= encoded.unscorable
    refuse_unscorable(pool, unscorable, "records of the pool")
    return None


def _training(home: Home, dataset: DatasetVersion, arm: Arm, fingerprint: str | None) -> ArmCost:
    continual = arm.stage == "continual"
    pool = dataset.manifest.counts["new"] if continual else dataset.pool.height
    records = resolve_budget(arm.budget, pool) if pool else 0
    steps = arm.training.total_steps(records) if records else 0
    # The time of a step is assumed to be proportional to the records in it.
    seconds, examples = 0.0, 0
    for version in stored_versions(home, "adapter") if fingerprint else ():
        for adapter in arm_artifacts(home, "adapter", version):
            own = adapter.manifest
            if (own.fingerprint, own.details.get("method")) == (fingerprint, arm.training.method):
                log, options = read_training_log(adapter.folder), own.request["training"]
                seconds += log.seconds
                examples += log.steps * options["batch_size"] * options["accumulation"]
    a_step = seconds / examples * arm.training.records_per_step if examples else None
    return ArmCost(arm.name, records, steps, None if a_step is None else steps * a_step)
