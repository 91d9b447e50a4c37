"""The step behind `subset`: the records an arm chooses, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.arms import Arm
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.lineage.existing import SUBSET_FILE, existing_of
from delift_pipeline.plots import gain_curve_png
from delift_pipeline.records.kept_columns import with_kept_columns
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.names import portable_name
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.balance import vanished
from delift_pipeline.selection.budget import parse_budget
from delift_pipeline.selection.diagnostics import diagnosed
from delift_pipeline.selection.kept import Ranked, broken, spent
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.result import Diagnostics, Selection
from delift_pipeline.selection.run import (
    BALANCE,
    SUSPECTS,
    select,
    selection_request,
    subset_parents,
    write_subset,
)
from delift_pipeline.selection.scorable import (
    refuse_beyond_scorable,
    refuse_unscorable,
    replay_of,
)
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.steps.cost import cost_sentence
from delift_pipeline.steps.outcome import PREVIEW_ROWS, Check, Outcome, preview
from delift_pipeline.steps.score import part_folder
from delift_pipeline.steps.tokens import counted
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.training.influence import LowRankGradients
from delift_pipeline.utility.block import Block
from delift_pipeline.utility.forms import UtilityForm
from delift_pipeline.utility.kernel import block_hashes, load_block

CODE_VERSION = "2"
NOT_APPLICABLE = {
    "task_specific": "it has no target set (ingest it with --target FILE)",
    "continual": "it has no parent version (ingest it with --parent V)",
}


@dataclass(frozen=True)
class Choice:
    """What an arm chooses from on one version.

    Attributes:
        dataset: The version.
        arm: The arm.
        pool: D, in file order; in the continual stage the records in no parent.
        existing: D_E (continual only).
        fingerprint: The scoring fingerprint, where scores are read.
        parents: Name of each artifact read -> its hash.
    """

    dataset: DatasetVersion
    arm: Arm
    pool: pl.DataFrame = field(repr=False)
    existing: pl.DataFrame | None = field(repr=False)
    fingerprint: str | None
    parents: dict[str, str]

    @property
    def request(self) -> dict[str, Any]:
        """What is asked for, defaults spelled out."""
        arm = self.arm
        asked = selection_request(
            arm.stage, arm.selector, arm.budget, arm.seed, arm.options, arm.rules
        )
        return {**asked, **({"balance": list(arm.balance)} if arm.balance else {})}


def make_subset(
    home: Home,
    version: str,
    arm: Arm,
    model: ModelOptions,
    run_id: str | None = None,
    reader: LanguageModel | None = None,
) -> Outcome:
    """Choose the arm's subset, unless the same was chosen from the same records and blocks.

    Args:
        home: The home.
        version: The dataset version.
        arm: The arm.
        model: The model whose scores are read.
        run_id: Of the Dagster run, for the manifest.
        reader: `model` as a selector reads it, where progress is shown or devices are shared.

    Raises:
        Refused: the arm does not apply to this version, what it continues is missing, or it needs
            pairs that are not planned (with their cost).
        DeliftError: scores or kernel are damaged or missing.
    """
    choice = choose_from(home, version, arm, model)
    folder = home.subset(version, arm.name)
    manifest = up_to_date(folder, choice.request, choice.parents, CODE_VERSION)
    reused, plots = manifest is not None, {}
    if manifest is None:
        manifest, plots = _select(home, choice, reader or LanguageModel(model, home), run_id)
    return _outcome(home, choice, manifest, reused, plots)


def refuse_inapplicable(dataset: DatasetVersion, arm: Arm) -> None:
    """Refuse an arm whose stage the version has no data for.

    Raises:
        Refused: it has none; the sentence says what is missing.
    """
    if arm.stage not in dataset.stages():
        reason = f"{arm.name} does not apply to {dataset.version}: {NOT_APPLICABLE[arm.stage]}"
        raise Refused(Fault(reason, field="arm"))


def choose_from(home: Home, version: str, arm: Arm, model: ModelOptions) -> Choice:
    """Gather what an arm chooses from, and refuse what cannot be chosen."""
    dataset = load_version(home, version)
    refuse_inapplicable(dataset, arm)
    pool = dataset.new_records(home) if arm.stage == "continual" else dataset.pool
    pool = with_kept_columns(home, version, pool)
    if pool.is_empty():
        raise Refused(Fault(f"{version} adds no record to its parents", field="version"))
    needs = needs_of(arm.selector, arm.stage, arm.options)
    existing, extra = None, {}
    if needs.reads_existing:
        found = existing_of(home, dataset, arm.name)
        existing, extra = found.records, found.parents
    fingerprint, hashes = _kernel(home, dataset, arm, model, needs)
    if needs.model:
        fingerprint = fingerprint_of(model).digest
        extra = {**extra, **_models(model, fingerprint, needs)}
    return Choice(
        dataset=dataset,
        arm=arm,
        pool=counted(pool, arm.budget, model),
        existing=existing,
        fingerprint=fingerprint,
        parents=subset_parents(version, dataset.manifest.content_hash, hashes, extra),
    )


def _kernel(
    home: Home, dataset: DatasetVersion, arm: Arm, model: ModelOptions, needs: Needs
) -> tuple[str | None, dict[str, str]]:
    """The fingerprint and the hashes of the blocks that the arm reads."""
    if not needs.blocks:
        return None, {}
    fingerprint = fingerprint_of(model).digest
    manifest = read_manifest(home.kernel(dataset.version, fingerprint))
    if manifest is None:
        reason = f"{dataset.version} has no kernel for this model yet: materialise utility_kernel"
        raise Refused(Fault(reason, field="arm"))
    known = block_hashes(manifest)
    absent = [name for name in needs.blocks if name not in known]
    if absent:
        raise Refused(Fault(cost_sentence(home, dataset, arm, fingerprint, absent), field="arm"))
    return fingerprint, {name: known[name] for name in needs.blocks}


def _models(model: ModelOptions, fingerprint: str, needs: Needs) -> dict[str, str]:
    """The models read -> their fingerprints."""
    others = {
        f"model:{portable_name(name)}": fingerprint_of(
            model.model_copy(update={"model": name, "revision": None})
        ).digest
        for name in needs.other_models
    }
    return {"model": fingerprint, **others}


def _select(
    home: Home, choice: Choice, reader: LanguageModel, run_id: str | None
) -> tuple[Manifest, dict[str, bytes]]:
    version, arm = choice.dataset.version, choice.arm

    def block(name: str, form: UtilityForm) -> Block:
        # A selector without scores has none in its lineage, but its picks are diagnosed by them.
        fingerprint = choice.fingerprint or reader.fingerprint
        return load_block(home, version, fingerprint, name, form)

    existing, unscorable = choice.existing, _unscorable(home, choice)
    inputs = SelectionInputs(
        stage=arm.stage,
        pool=choice.pool,
        block=block,
        existing=() if existing is None else tuple(existing["record_id"]),
        existing_records=existing,
        target=choice.dataset.target,
        whole=choice.dataset.pool,
        model=reader,
        gradients=LowRankGradients(),
        unscorable=unscorable,
    )
    _refuse_beyond_scorable(choice, unscorable)
    rules = arm.rules.rules(choice.pool)
    selection = select(inputs, arm.selector, arm.budget, arm.seed, arm.options, rules)
    selection = diagnosed(inputs, selection, arm.seed)
    manifest = write_subset(
        home.subset(version, arm.name),
        selection,
        choice.pool,
        request=choice.request,
        parents=choice.parents,
        fingerprint=choice.fingerprint,
        code_version=CODE_VERSION,
        run_id=run_id,
        balance_by=arm.balance,
    )
    return manifest, {} if selection.gains is None else {"gains": _gains_png(selection)}


def _gains_png(selection: Selection) -> bytes:
    return gain_curve_png(
        selection.gains,
        selection.selector,
        selection.objective or "",
        selection.details.get("knee"),
        selection.value_random,
    )


def _unscorable(home: Home, choice: Choice) -> dict[str, str]:
    """record_id -> why, of the records that scoring has left out."""
    if choice.fingerprint is None:
        return {}
    version = choice.dataset.version
    manifest = read_manifest(part_folder(home, version, choice.fingerprint, "in_context"))
    return manifest.details["unscorable"] if manifest else {}


def _refuse_beyond_scorable(choice: Choice, unscorable: Mapping[str, str]) -> None:
    """Refuse a budget above the number of records that the arm's selector can rank."""
    arm = choice.arm
    if not needs_of(arm.selector, arm.stage, arm.options).scores:
        return
    refuse_unscorable(choice.pool, unscorable, "records of the pool")
    share, replayable = replay_of(arm.selector, arm.stage, arm.options, choice.existing, unscorable)
    refuse_beyond_scorable(choice.pool, unscorable, arm.budget, share, replayable)


def _outcome(
    home: Home, choice: Choice, manifest: Manifest, reused: bool, plots: dict[str, bytes]
) -> Outcome:
    folder = home.subset(choice.dataset.version, choice.arm.name)
    subset = pl.read_parquet(folder / SUBSET_FILE)
    texts = subset.join(_records(choice).drop("source_ids"), on="record_id", how="left")
    shown = texts.with_columns(covers=pl.col("covers").list.len())
    facts: dict[str, float | int | str] = {**manifest.counts}
    for name in ("objective", "value", "value_random", "knee", "tokens"):
        if manifest.details.get(name) is not None:
            facts[name] = manifest.details[name]
    if manifest.details["notes"]:
        facts["notes"] = " ".join(manifest.details["notes"])
    diagnostics = Diagnostics.from_json(manifest.details["diagnostics"])
    facts |= {k: v for k, v in diagnostics.as_json().items() if v is not None}
    columns = ("rank", "gain", "covers", "trust", "instruction", "input", "output", "task")
    return Outcome(
        manifest=manifest,
        path=folder.relative_to(home.root).as_posix(),
        reused=reused,
        facts=facts,
        plots=plots,
        tables={"first picks": preview(shown.sort("rank"), columns), **_tables(home, choice)},
        checks={
            **_checks(choice, manifest, subset),
            "trust": _trust_check(diagnostics),
            "balance": _balance_check(choice, pl.read_parquet(folder / BALANCE), subset),
        },
    )


def _tables(home: Home, choice: Choice) -> dict[str, pl.DataFrame]:
    """The balance, and the suspected wrong records where near pairs were scored."""
    folder = home.subset(choice.dataset.version, choice.arm.name)
    tables = {"balance": pl.read_parquet(folder / BALANCE).head(PREVIEW_ROWS)}
    if (folder / SUSPECTS).exists():
        suspects = pl.read_parquet(folder / SUSPECTS)
        named = suspects.join(choice.pool, on="record_id", how="left", maintain_order="left")
        columns = ("record_id", "trust", "selected", "instruction", "input", "output")
        tables["suspected wrong records"] = preview(named, columns)
    return tables


def _trust_check(diagnostics: Diagnostics) -> Check:
    """Whether the picks are trusted about as much as the pool; it warns and stops nothing."""
    gap = diagnostics.trust_difference
    if gap is None:
        return Check(True, "no near pairs are scored, so trust is not known")
    return Check(not diagnostics.less_trusted, diagnostics.lines()[0], {"trust_difference": gap})


def _balance_check(choice: Choice, table: pl.DataFrame, subset: pl.DataFrame) -> Check:
    """Whether every group of the pool is in the subset; it warns and stops nothing."""
    lost = vanished(table) if subset.height else ()
    absent = [name for name in choice.arm.balance if name not in choice.pool.columns]
    said = [line.removeprefix("warning: ") for line in lost]
    said += [f"{choice.dataset.version} keeps no column {name} (ingest --keep)" for name in absent]
    groups = int(table["vanished"].sum()) if subset.height else 0
    compared = ", ".join(table["by"].unique(maintain_order=True))
    note = "; ".join(said) or f"every group is in the subset, by {compared}"
    return Check(not said, note, {"vanished": groups})


def _records(choice: Choice) -> pl.DataFrame:
    """What picks may be: the pool, and in the continual stage what is replayed from D_E."""
    if choice.existing is None:
        return choice.pool
    both = pl.concat([choice.pool, choice.existing], how="diagonal_relaxed")
    return both.unique("record_id", keep="first")


def _checks(choice: Choice, manifest: Manifest, subset: pl.DataFrame) -> dict[str, Check]:
    known = subset["record_id"].is_in(_records(choice)["record_id"].implode()).sum()
    return {
        "budget": _budget_check(choice, manifest, subset),
        "known": Check(known == subset.height, f"{known} of {subset.height} are known records"),
        "unique": Check(
            subset["record_id"].n_unique() == subset.height,
            f"{subset['record_id'].n_unique()} different records in {subset.height} picks",
        ),
    }


def _budget_check(choice: Choice, manifest: Manifest, subset: pl.DataFrame) -> Check:
    """Whether the subset is what the budget buys, and keeps to the rules."""
    arm, notes = choice.arm, manifest.details["notes"]
    allowed = parse_budget(arm.budget, choice.pool.height)
    picks = subset.sort("rank")
    ranked = Ranked(picks["record_id"].to_list(), picks["gain"].to_list(), choice.pool)
    wrong = (
        ()
        if arm.traits.reference == "whole"
        else broken(ranked, allowed, arm.rules.rules(choice.pool))
    )
    short = subset.height < allowed.count and not (allowed.open_ended or notes)
    if allowed.tokens is not None:
        cost = spent(choice.pool, ranked.records)
        note = f"{subset.height} records of {cost:,} tokens, {allowed.tokens:,} asked for"
    elif allowed.stop:
        note = f"{subset.height} records until a gain fell under {allowed.stop:g} of the first"
    else:
        note = f"{subset.height} of {allowed.count} asked for"
    asked = str(arm.budget) if allowed.open_ended else allowed.count
    facts: dict[str, float | int | str] = {"selected": subset.height, "asked": asked}
    return Check(not (wrong or short), " ".join([note, *wrong, *notes]), facts)
