"""Selection: the utility kernel, and the subset that each arm chooses from it."""

import polars as pl

from assets.common import MODEL_RESOURCES, Step, asset_of
from assets.execution import gpu_pool_claim
from assets.outcome import PREVIEW_ROWS, Check, Facts, Outcome, load_plot, preview
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.core.plots import gain_curve_png, heat_map_png
from delift_pipeline.kernel.columns import cell_means
from delift_pipeline.kernel.kernel import load_block
from delift_pipeline.orchestration.jobs import on_new_data_version
from delift_pipeline.orchestration.partitions import dataset_version, version_and_arm
from delift_pipeline.scoring.plan import read_plan
from delift_pipeline.selection.budget import parse_budget
from delift_pipeline.selection.contribution import changed_picks_sentence
from delift_pipeline.selection.diagnostics import vanished_group_warnings
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import options_of
from delift_pipeline.selection.result import Diagnostics
from delift_pipeline.selection.rules import find_violations, token_cost
from delift_pipeline.selection.run import BALANCE, CHANGED, SUBSET, SUSPECTS
from delift_pipeline.stages import subset as subset_stage
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.result import Result


@asset_of(
    make_kernel,
    dataset_version,
    deps=["baseline_logprobs", "in_context_logprobs"],
    group_name="selection",
    kinds={"numpy"},
    automation_condition=on_new_data_version,
    required_resource_keys=MODEL_RESOURCES,
)
def utility_kernel(step: Step) -> Outcome:
    """The utility of each demonstration j for each target i, as memory-mapped blocks."""
    result = make_kernel(step.home, step.version, step.model, step.run_id)
    return kernel_outcome(result, step.version)


@asset_of(
    subset_stage.make_subset,
    version_and_arm,
    deps=["raw_dataset", "utility_kernel"],
    group_name="selection",
    kinds={"numpy", "parquet"},
    required_resource_keys=MODEL_RESOURCES,
)
def subset(step: Step) -> Outcome:
    """The records that an arm chose, in rank order with gains, and the reasons for all records.

    Only a selector that loads the model takes a slot in the gpu pool.
    """
    home, version, arm, model = step.home, step.version, step.arm, step.model
    with gpu_pool_claim(step.context) as claim:
        reader = LanguageModel(model, home, step.progress, claim)
        return subset_outcome(
            subset_stage.make_subset(home, version, arm, model, step.run_id, reader)
        )


def kernel_outcome(result: Result, version: str) -> Outcome:
    """Convert a utility kernel to what Dagster shows."""
    manifest, plan = result.manifest, read_plan(result.home.plan(version))
    blocks, left_out = manifest.details["blocks"], set(manifest.details["unscorable"])
    dense = "self" in blocks and blocks["self"]["form"] == "dense"
    table = [
        {"block": block, **{k: v for k, v in entry.items() if k != "hash"}}
        for block, entry in blocks.items()
    ]

    def draw() -> bytes:
        name = "self" if dense else "neighbours"
        block = load_block(result.home, version, str(manifest.fingerprint), name)
        return heat_map_png(cell_means(block.matrix), block.name)

    wrong = []
    for block in plan.blocks:
        entry = blocks[block.name]
        shape = (len({*block.targets} - left_out), len({*block.demonstrations} - left_out))
        # A block without pairs has no lowest and highest utility.
        in_range = entry["pairs"] == 0 or -1 <= entry["low"] <= entry["high"] <= 1
        if not in_range or (entry["rows"], entry["columns"]) != shape:
            wrong.append(block.name)
    share = blocks["self"]["share_positive"] or 0.0
    return Outcome.of(
        result,
        facts=dict(manifest.counts),
        plots={"utilities": load_plot(result.folder / "utilities.png", draw)},
        tables={"blocks": pl.DataFrame(table)},
        checks={
            "shape": Check(
                not wrong,
                f"wrong shape or utilities outside [-1, 1]: {', '.join(wrong) or 'none'}",
            ),
            "positive": Check(
                share > 0,
                f"{share:.1%} of the pool's utilities are above 0",
                {"share_positive": share},
            ),
        },
    )


def subset_outcome(result: subset_stage.SubsetResult) -> Outcome:
    """Convert a subset to what Dagster shows."""
    inputs, manifest, folder = result.inputs, result.manifest, result.folder
    subset, balance = pl.read_parquet(folder / SUBSET), pl.read_parquet(folder / BALANCE)
    # Picks come from the pool and, in the continual stage, also from the existing records.
    records = inputs.pool
    if inputs.existing is not None:
        records = pl.concat([records, inputs.existing], how="diagonal_relaxed")
        records = records.unique("record_id", keep="first")
    details = manifest.details
    names = ("objective", "value", "value_random", "knee", "tokens")
    known = {name: details[name] for name in names if details.get(name) is not None}
    facts: Facts = {**manifest.counts, **known}
    notes, changed = list(details["notes"]), details.get(CHANGED)
    if changed is not None:
        # Older manifests lack the number.
        facts[CHANGED] = changed
        if not changed:
            options = options_of(inputs.arm.selector, inputs.arm.options)
            notes.append(changed_picks_sentence(changed, subset.height, options))
    if notes:
        facts["notes"] = " ".join(notes)
    diagnostics = Diagnostics.from_json(details["diagnostics"])
    facts |= {k: v for k, v in diagnostics.as_json().items() if v is not None}
    texts = subset.join(records.drop("source_ids"), on="record_id", how="left")
    picks_table = texts.with_columns(covers=pl.col("covers").list.len()).sort("rank")
    columns = ("rank", "gain", "covers", "trust", "instruction", "input", "output", "task")
    tables = {"first picks": preview(picks_table, columns), "balance": balance.head(PREVIEW_ROWS)}
    if (folder / SUSPECTS).exists():
        suspects = pl.read_parquet(folder / SUSPECTS)
        texts = suspects.join(inputs.pool, on="record_id", how="left", maintain_order="left")
        columns = ("record_id", "trust", "selected", "instruction", "input", "output")
        tables["suspected wrong records"] = preview(texts, columns)
    picks, n = subset["record_id"], subset.height
    known, different = picks.is_in(records["record_id"].implode()).sum(), picks.n_unique()
    plots, selection = dict[str, bytes](), result.selection
    if selection and selection.gains is not None:
        marks = (selection.details.get("knee"), selection.value_random)
        title = (selection.selector, selection.objective or "")
        plots["gains"] = gain_curve_png(selection.gains, *title, *marks)
    return Outcome.of(
        result,
        facts=facts,
        plots=plots,
        tables=tables,
        checks={
            "budget": _budget_check(inputs, manifest, subset.sort("rank")),
            "known": Check(known == n, f"{known} of {n} are known records"),
            "unique": Check(different == n, f"{different} different records in {n} picks"),
            "trust": trust_check(diagnostics),
            "balance": _balance_check(inputs, balance, subset),
        },
    )


def trust_check(diagnostics: Diagnostics) -> Check:
    """Check whether the picks have about the trust of the pool. A failure only warns."""
    gap = diagnostics.trust_difference
    if gap is None:
        return Check(True, "nothing is scored, so trust is not known")
    return Check(not diagnostics.warnings, diagnostics.lines()[0], {"trust_difference": gap})


def _balance_check(
    inputs: subset_stage.SubsetInputs, table: pl.DataFrame, subset: pl.DataFrame
) -> Check:
    """Check whether every group of the pool is in the subset. A failure only warns."""
    vanished = vanished_group_warnings(table) if subset.height else ()
    absent = [name for name in inputs.arm.balance if name not in inputs.pool.columns]
    warnings = [line.removeprefix("warning: ") for line in vanished]
    warnings += [
        f"{inputs.dataset.version} has no column {name} (ingest it with --keep)" for name in absent
    ]
    groups = int(table["vanished"].sum()) if subset.height else 0
    compared = ", ".join(table["by"].unique(maintain_order=True))
    note = "; ".join(warnings) or f"the subset has records of every group, by {compared}"
    return Check(not warnings, note, {"vanished": groups})


def _budget_check(
    inputs: subset_stage.SubsetInputs, manifest: Manifest, picks: pl.DataFrame
) -> Check:
    """Check whether the subset has the size of the budget and satisfies the rules."""
    arm, notes = inputs.arm, manifest.details["notes"]
    allowed = parse_budget(arm.budget, inputs.pool.height)
    records, gains = picks["record_id"].to_list(), picks["gain"].to_list()
    whole = arm.traits.reference == "whole"
    rules = arm.rules.rules(inputs.pool)
    wrong = () if whole else find_violations(records, gains, inputs.pool, allowed, rules)
    short = picks.height < allowed.count and not (allowed.is_open_ended or notes)
    if allowed.tokens is not None:
        cost = token_cost(inputs.pool, records)
        note = f"{picks.height} records of {cost:,} tokens; the budget is {allowed.tokens:,}"
    elif allowed.stop:
        note = f"{picks.height} records until a gain fell below {allowed.stop:g} of the first"
    else:
        note = f"{picks.height} records; the budget is {allowed.count}"
    requested = str(arm.budget) if allowed.is_open_ended else allowed.count
    facts: Facts = {"selected": picks.height, "asked": requested}
    return Check(not (wrong or short), " ".join([note, *wrong, *notes]), facts)
