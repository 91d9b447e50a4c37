"""The columns of each asset's stored table, and the upstream columns that they come from."""

from collections.abc import Mapping

import dagster as dg

from delift_pipeline.evaluation.options import METRICS

RECORD = "digest of instruction, input and output"
PROMPT = "raw_dataset.instruction raw_dataset.input"
OUTPUT, ADAPTER = "raw_dataset.output", "adapter.record_id"
NEAR = "pair_plan.record_id pair_plan.neighbours"
DEMONSTRATION = "in_context_logprobs.demonstration_id"
BASELINE, IN_CONTEXT = "baseline_logprobs", "in_context_logprobs"
SCORES = f"{BASELINE}.squared_distance {BASELINE}.tokens {IN_CONTEXT}.squared_distance"
UTILITY = "utility_kernel.utility"
INSTRUCTION, INPUT = "what is asked", "what it is asked about; may be empty"
SQUARED_DISTANCE = ("float32", "sum of (1 - p)^2 over its answer tokens")
SUM_LOGPROB = ("float32", "summed log-probability of its answer tokens, nats")
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
        "source": ("string", "where the record comes from, as the file says"),
        "task": ("string", "the task, as the file says"),
        "copies": ("uint32", "identical records folded into this one, itself included"),
        "source_ids": ("list[string]", "the file's own ids of all copies"),
    },
    "pair_plan": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "neighbours": ("int32", "near prompts found for it", PROMPT),
        "reason": ("string", "why it has none; null where it has"),
    },
    "baseline_logprobs": {
        "target_id": ("string", "record whose answer is scored", "pair_plan.record_id"),
        "sum_logprob": SUM_LOGPROB,
        "squared_distance": SQUARED_DISTANCE,
        "tokens": ("int32", "answer tokens, end-of-text included"),
    },
    "in_context_logprobs": {
        "target_id": ("string", "record whose answer is scored", "pair_plan.record_id"),
        "demonstration_id": ("string", "record that stands before it", NEAR),
        "sum_logprob": SUM_LOGPROB,
        "squared_distance": SQUARED_DISTANCE,
    },
    "utility_kernel": {
        "target_id": ("string", "row of the kernel", "in_context_logprobs.target_id"),
        "demonstration_id": ("string", "column of the kernel", DEMONSTRATION),
        "utility": ("float32", "d alone minus d after the demonstration, in [-1, 1]", SCORES),
    },
    "subset": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "source_id": ("string", "the file's own id of it", "raw_dataset.source_ids"),
        "rank": ("uint32", "place in the ranking, from 0; a smaller budget is a prefix"),
        "gain": ("float64", "marginal gain; null where nothing was maximised", UTILITY),
        "covers": ("list[string]", "records it covers best", UTILITY),
        "trust": ("float64", "agreement of near prompts; null where it is not known", UTILITY),
        "self_share": ("float64", "share of its gain that is its own row"),
        "near_duplicates": ("uint32", "near duplicates of it in the pool"),
        "replayed": ("bool", "whether it is replayed from what the parents trained on"),
    },
    "adapter": {
        "record_id": ("string", RECORD, "subset.record_id"),
        "adapter": ("string", "the adapter trained on it: this one, or one before it"),
        "rank": ("uint32", "its rank in that adapter's subset", "subset.rank"),
        "left_out": ("string", "why it was not trained on; null where it was", OUTPUT),
    },
    "eval_report": {
        "record_id": ("string", RECORD, "raw_dataset.record_id"),
        "instruction": ("string", INSTRUCTION, "raw_dataset.instruction"),
        "input": ("string", INPUT, "raw_dataset.input"),
        "reference": ("string", "the reference answer", OUTPUT),
        "generated": ("string", "the model's answer; null where no metric needs it", ADAPTER),
        **{name: ("float64", metric.meaning) for name, metric in METRICS.items()},
    },
    "leaderboard": {
        "version": ("string", "dataset version"),
        "stage": ("string", "stage of the arm"),
        "selector": ("string", "selector of the arm; `initial` is the base model"),
        "arm": ("string", "the arm"),
        "budget": ("string", "budget as asked for; null for the base model"),
        "seed": ("int64", "seed of selection and training"),
        "records": ("int64", "records trained on"),
        "pool": ("int64", "records to choose from"),
        "heldout": ("int64", "held-out records measured"),
        "fingerprint": ("string", "scoring fingerprint of the base model"),
        "seconds": ("float64", "wall time of everything in the report"),
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
