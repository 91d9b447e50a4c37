"""The columns of each asset's stored table, and the upstream columns that they come from."""

from collections.abc import Mapping

import dagster as dg

from delift_pipeline.evaluation.options import METRICS

RECORD = "hash of instruction, input and output"
PROMPT = "raw_dataset.instruction raw_dataset.input"
OUTPUT, ADAPTER = "raw_dataset.output", "adapter.record_id"
NEAR = "pair_plan.record_id pair_plan.neighbours"
DEMONSTRATION = "in_context_logprobs.demonstration_id"
BASELINE, IN_CONTEXT = "baseline_logprobs", "in_context_logprobs"
SCORES = f"{BASELINE}.squared_distance {BASELINE}.tokens {IN_CONTEXT}.squared_distance"
UTILITY = "utility_kernel.utility"
INSTRUCTION, INPUT = "the instruction", "the input that the instruction is about; may be empty"
SQUARED_DISTANCE = ("float32", "sum of (1 - p)^2 over the tokens of the answer")
SUM_LOGPROB = ("float32", "log-probability of the answer: the sum over its tokens, in nats")
MEANS = {"": "mean", "_se": "standard error"}
DIFFERENCES = {
    "_minus_random": "mean difference from the random arm, paired by record",
    "_minus_random_se": "standard error of that difference",
}

# Asset -> column -> (type, meaning, its upstream columns), in the order of the stored table.
_TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "raw_dataset": {
        "record_id": ("string", RECORD),
        "instruction": ("string", INSTRUCTION),
        "input": ("string", INPUT),
        "output": ("string", "the reference answer"),
        "source": ("string", "the source of the record, from the file"),
        "task": ("string", "the task of the record, from the file"),
        "copies": ("uint32", "number of identical records that became this one"),
        "source_ids": ("list[string]", "ids of all copies in the user's file"),
    },
    "pair_plan": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "neighbours": ("int32", "number of the record's near prompts", PROMPT),
        "reason": ("string", "why the record has none; null if it has some"),
    },
    "baseline_logprobs": {
        "target_id": ("string", "record whose answer is scored", "pair_plan.record_id"),
        "sum_logprob": SUM_LOGPROB,
        "squared_distance": SQUARED_DISTANCE,
        "tokens": ("int32", "tokens of the answer, with the end-of-text token"),
        "prompted": ("float32", "log-probability of the answer without its end-of-text token"),
        "unprompted": ("float32", "the same after an empty prompt"),
    },
    "in_context_logprobs": {
        "target_id": ("string", "record whose answer is scored", "pair_plan.record_id"),
        "demonstration_id": ("string", "record that the model sees before it", NEAR),
        "sum_logprob": SUM_LOGPROB,
        "squared_distance": SQUARED_DISTANCE,
    },
    "utility_kernel": {
        "target_id": ("string", "row of the kernel", "in_context_logprobs.target_id"),
        "demonstration_id": ("string", "column of the kernel", DEMONSTRATION),
        "utility": ("float32", "d without minus d after the demonstration, in [-1, 1]", SCORES),
    },
    "subset": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "source_id": ("string", "id of the record in the user's file", "raw_dataset.source_ids"),
        "rank": ("uint32", "rank from 0; the subset of a smaller budget has the first ranks"),
        "gain": ("float64", "marginal gain; null if the selector maximises nothing", UTILITY),
        "covers": ("list[string]", "records that the pick covers", UTILITY),
        "trust": ("float64", "trust from 0 to 1; null if it is not known", UTILITY),
        "self_share": ("float64", "share of the gain that comes from the record itself"),
        "near_duplicates": ("uint32", "number of the record's near duplicates in the pool"),
        "replayed": ("bool", "whether the record is an existing one, for replay"),
    },
    "adapter": {
        "record_id": ("string", RECORD, "subset.record_id"),
        "adapter": ("string", "the adapter that was trained on it: this or an earlier one"),
        "rank": ("uint32", "rank of the record in that adapter's subset", "subset.rank"),
        "left_out": ("string", "why training left it out; null if it was used", OUTPUT),
    },
    "eval_report": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "instruction": ("string", INSTRUCTION, "raw_dataset.instruction"),
        "input": ("string", INPUT, "raw_dataset.input"),
        "reference": ("string", "the reference answer", OUTPUT),
        "generated": ("string", "the model's answer; null if no metric needs it", ADAPTER),
        **{name: ("float64", metric.meaning) for name, metric in METRICS.items()},
    },
    "leaderboard": {
        "version": ("string", "dataset version"),
        "stage": ("string", "stage of the arm"),
        "selector": ("string", "selector of the arm; `initial` is the base model"),
        "arm": ("string", "name of the arm"),
        "budget": ("string", "budget of the arm; null for the base model"),
        "seed": ("int64", "seed of selection and training"),
        "records": ("int64", "number of training records"),
        "pool": ("int64", "number of records in the pool"),
        "heldout": ("int64", "number of held-out records in the report"),
        "fingerprint": ("string", "scoring fingerprint of the base model"),
        "seconds": ("float64", "wall time of the whole evaluation"),
        **{
            f"{name}{end}": ("float64", f"{metric.title}: {what}", f"eval_report.{name}")
            for ends in (MEANS, DIFFERENCES)
            for name, metric in METRICS.items()
            for end, what in ends.items()
        },
    },
}

# Asset -> column -> (type, meaning).
COLUMNS = {
    asset: {name: (kind, meaning) for name, (kind, meaning, *_) in columns.items()}
    for asset, columns in _TABLES.items()
}
# Asset -> column -> its upstream columns, as (asset, column).
COLUMN_PARENTS = {
    asset: {
        name: [tuple(source.split(".")) for source in parents[0].split()]
        for name, (_, _, *parents) in columns.items()
        if parents
    }
    for asset, columns in _TABLES.items()
    if asset != "raw_dataset"
}


def schema_of(asset: str) -> dg.TableSchema:
    """Return the columns of an asset's stored table, with types and meanings."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(name=name, type=kind, description=meaning)
            for name, (kind, meaning) in COLUMNS[asset].items()
        ]
    )


def column_metadata(asset: str) -> Mapping[str, dg.MetadataValue]:
    """Return the metadata of an asset's definition that shows its columns."""
    return {"dagster/column_schema": dg.MetadataValue.table_schema(schema_of(asset))}


def column_lineage(asset: str) -> Mapping[str, dg.MetadataValue]:
    """Return the metadata of a materialisation that shows upstream columns, if there are any."""
    if asset not in COLUMN_PARENTS:
        return {}
    deps = {
        column: [dg.TableColumnDep(dg.AssetKey(above), name) for above, name in parents]
        for column, parents in COLUMN_PARENTS[asset].items()
    }
    lineage = dg.TableColumnLineage(deps_by_column=deps)
    return {"dagster/column_lineage": dg.MetadataValue.column_lineage(lineage)}


# Asset -> the count in its manifest that is the number of rows of its table.
ROWS = {
    "raw_dataset": "pool",
    "subset": "selected",
    "eval_report": "records",
    "leaderboard": "rows",
}


def row_count(asset: str, counts: Mapping[str, int], partitioned: bool) -> dict[str, int]:
    """Return the metadata of a materialisation that shows the number of rows, if it is known."""
    if ROWS.get(asset) not in counts:
        return {}
    title = "dagster/partition_row_count" if partitioned else "dagster/row_count"
    return {title: counts[ROWS[asset]]}
