"""The stage behind `subset`: choose an arm's records, and store the reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import up_to_date
from delift_pipeline.kernel.block import Block, UtilityForm
from delift_pipeline.kernel.kernel import block_hashes, load_block
from delift_pipeline.lineage.version import find_existing_records
from delift_pipeline.records.extra_columns import join_extra_columns
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions, options_of_other, portable_name
from delift_pipeline.scoring.support import support_of
from delift_pipeline.selection.diagnostics import add_diagnostics
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import (
    refuse_beyond_scorable,
    refuse_unscorable,
    select,
    selection_request,
    subset_parents,
    write_subset,
)
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.stages.arms import Arm
from delift_pipeline.stages.cost import cost_sentence, with_token_counts
from delift_pipeline.stages.result import Result, required_manifest
from delift_pipeline.stages.score import REQUESTS, unscorable_of
from delift_pipeline.training.influence import LowRankGradients

CODE_VERSION = "2"
NOT_APPLICABLE = {
    "task_specific": "it has no target set (ingest it with --target FILE)",
    "continual": "it has no parent version (ingest it with --parent V)",
}


@dataclass(frozen=True)
class SubsetInputs:
    """What an arm chooses from in one version.

    Attributes:
        pool: The pool D in file order. In the continual stage it has only records of no parent.
        existing: The existing records D_E, if the arm reads them.
        fingerprint: The fingerprint of the model, if the arm reads scores or the model.
        parents: The name of each artifact that is read, with its hash.
    """

    dataset: DatasetVersion
    arm: Arm
    pool: pl.DataFrame = field(repr=False)
    existing: pl.DataFrame | None = field(repr=False)
    fingerprint: str | None
    parents: dict[str, str]


@dataclass(frozen=True)
class SubsetResult(Result):
    """A stored subset, and what it was chosen from.

    Attributes:
        selection: The ranking with its reasons. None if the subset was stored already.
    """

    inputs: SubsetInputs
    selection: Selection | None


def make_subset(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    run_id: str | None = None,
    reader: LanguageModel | None = None,
    unscorable: Mapping[str, str] | None = None,
) -> SubsetResult:
    """Choose the arm's subset, unless the stored subset has the same inputs.

    `reader` gives selectors access to the model; pass one to show progress or to share a device.
    `unscorable` says why records cannot be scored, by record_id. None reads it from the scores.

    Raises:
        InputError: the arm does not apply to this version, the subset that it continues is missing,
            or it needs pairs that are not planned. The message then states their cost.
        DeliftError: scores or kernel are damaged or missing.
    """
    inputs, folder = _read_inputs(home, version, arm, model), home.subset(version, arm.name)
    settings = (arm.selector, arm.budget, arm.seed, arm.options, arm.rules)
    request = selection_request(arm.stage, *settings)
    if arm.balance:
        request["balance"] = list(arm.balance)
    if manifest := up_to_date(folder, request, inputs.parents, CODE_VERSION):
        return SubsetResult(home, folder, manifest, True, inputs, None)
    if unscorable is None:
        unscorable = unscorable_of(home, version, inputs.fingerprint)
    selection = _select(home, inputs, reader or LanguageModel(model, home), unscorable)
    manifest = write_subset(
        folder,
        selection,
        inputs.pool,
        request=request,
        parents=inputs.parents,
        fingerprint=inputs.fingerprint,
        code_version=CODE_VERSION,
        run_id=run_id,
        balance_by=arm.balance,
    )
    return SubsetResult(home, folder, manifest, False, inputs, selection)


def refuse_inapplicable(dataset: DatasetVersion, arm: Arm) -> None:
    """Refuse an arm if the version has no data for its stage.

    Raises:
        InputError: the data is missing. The message says which.
    """
    if arm.stage not in dataset.stages():
        reason = f"{arm.name} does not apply to {dataset.version}: {NOT_APPLICABLE[arm.stage]}"
        raise InputError(reason, field="arm")


def _read_inputs(home: Home, version: str, arm: Arm, model: ModelOptions) -> SubsetInputs:
    """Read what an arm chooses from, and refuse an arm that cannot choose from it."""
    dataset = load_version(home, version)
    refuse_inapplicable(dataset, arm)
    pool = dataset.new_records(home) if arm.stage == "continual" else dataset.pool
    if pool.is_empty():
        raise InputError(
            f"{version} adds no record to its parents, so there is nothing to select",
            field="version",
        )
    needs = needs_of(arm.selector, arm.stage, arm.options)
    existing, blocks, extra = None, dict[str, str](), dict[str, str]()
    if needs.reads_existing:
        existing_records = find_existing_records(home, dataset, arm.name)
        existing, extra = existing_records.records, dict(existing_records.parents)
    reads_model = bool(needs.blocks) or needs.support or needs.model
    fingerprint = fingerprint_of(model).digest if reads_model else None
    if needs.blocks and fingerprint:
        reason = f"{version} has no kernel for this model yet. Materialise utility_kernel first"
        kernel = required_manifest(home.kernel(version, fingerprint), reason, field="arm")
        known = block_hashes(kernel)
        if absent := [name for name in needs.blocks if name not in known]:
            reason = cost_sentence(home, dataset, arm, fingerprint, absent)
            raise InputError(reason, field="arm")
        blocks = {name: known[name] for name in needs.blocks}
    if needs.support and fingerprint:
        reason = f"{version} has no support for this model yet. Materialise baseline_logprobs first"
        folder = home.version_scores(version, fingerprint, "baseline")
        baseline = required_manifest(folder, reason, field="arm")
        if baseline.request != REQUESTS["baseline"]:
            raise InputError(reason, field="arm")
        extra[f"baseline:{version}"] = baseline.content_hash
    if needs.model and fingerprint:
        extra["model"] = fingerprint
        for name in needs.other_models:
            other = fingerprint_of(options_of_other(model, name))
            extra[f"model:{portable_name(name)}"] = other.digest
    parents = subset_parents(version, dataset.manifest.content_hash, blocks, extra)
    pool = with_token_counts(join_extra_columns(home, version, pool), arm.budget, model)
    return SubsetInputs(dataset, arm, pool, existing, fingerprint, parents)


def _select(
    home: Home, inputs: SubsetInputs, reader: LanguageModel, unscorable: Mapping[str, str]
) -> Selection:
    arm, dataset, existing = inputs.arm, inputs.dataset, inputs.existing
    if needs_of(arm.selector, arm.stage, arm.options).scores:
        refuse_unreachable_budget(arm, inputs.pool, existing, unscorable)

    def block(name: str, form: UtilityForm) -> Block:
        # A selector without scores has no fingerprint, but scores still diagnose its subset.
        fingerprint = inputs.fingerprint or reader.fingerprint
        return load_block(home, dataset.version, fingerprint, name, form)

    def support(record_ids: Sequence[str]) -> np.ndarray:
        return support_of(reader.scores, record_ids)

    selection_inputs = SelectionInputs(
        stage=arm.stage,
        pool=inputs.pool,
        block=block,
        support=support,
        existing=() if existing is None else tuple(existing["record_id"]),
        existing_records=existing,
        target=dataset.target,
        whole=dataset.pool,
        model=reader,
        gradients=LowRankGradients(),
        unscorable=unscorable,
    )
    rules = arm.rules.rules(inputs.pool)
    settings = (arm.selector, arm.budget, arm.seed, arm.options, rules)
    selection = select(selection_inputs, *settings)
    return add_diagnostics(selection_inputs, selection, arm.seed)


def refuse_unreachable_budget(
    arm: Arm,
    pool: pl.DataFrame,
    existing: pl.DataFrame | None,
    unscorable: Mapping[str, str],
    what: str = "records of the pool",
) -> tuple[float, int]:
    """Refuse a budget above the number of records that the arm's selector can rank by scores.

    `existing` holds the existing records D_E if the arm reads them. The message calls the pool
    `what`.

    Returns:
        The share of the picks that is replayed, and how many existing records can be replayed.

    Raises:
        InputError: no record can be scored, or fewer than the budget asks for.
    """
    refuse_unscorable(pool, unscorable, what)
    settings = (arm.selector, arm.stage, arm.options, arm.budget)
    return refuse_beyond_scorable(*settings, pool, existing, unscorable)
