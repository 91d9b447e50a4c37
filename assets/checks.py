"""The checks of every asset: blocking ones stop what follows, the others warn."""

import warnings

import dagster as dg

BLOCKING: dict[str, dict[str, str]] = {
    "raw_dataset": {
        "schema": "Columns and types are those every later step reads.",
        "not_empty": "Pool, held-out and target sets hold records.",
        "disjoint": "Pool (the parents' included), target and held-out set share no record.",
    },
    "pair_plan": {"neighbours": "Every record has its neighbours or says why not."},
    "baseline_logprobs": {
        "complete": "Every record of the plan has its score alone, or is reported unscorable.",
        "finite": "Log-probabilities are finite and at most 0.",
    },
    "in_context_logprobs": {
        "complete": "Every planned pair is scored, or one of its records is unscorable.",
        "finite": "Log-probabilities are finite and at most 0.",
    },
    "utility_kernel": {"shape": "Blocks have the plan's shape and only finite values."},
    "subset": {
        "budget": "The subset is as large as the budget, or says why it is shorter.",
        "known": "Every picked record stands in the pool, or is replayed (continual stage).",
        "unique": "No record is picked twice.",
    },
    "adapter": {"loads": "The weights are readable safetensors with finite values."},
}

WARNING: dict[str, dict[str, str]] = {
    "raw_dataset": {"inbox": "What was dropped into the inbox under this name was taken."},
    "utility_kernel": {"positive": "Some demonstrations help: a share of utilities is above 0."},
    "subset": {
        "trust": "The trust of the picks is at most .01 below the pool's, or is not known.",
        "balance": "No group of the pool vanishes: task, source, length, script, columns named.",
    },
    "adapter": {"loss_fell": "The loss fell from the first tenth of the steps to the last."},
    "eval_report": {
        "beats_base": "The answer loss is not above the base model's.",
        "beats_random": "The answer loss is not above the random arm's of the same stage.",
    },
}


def check_specs(asset: str, partitions: dg.PartitionsDefinition | None) -> list[dg.AssetCheckSpec]:
    """Return the check specifications of one asset, with the asset's partitions.

    So a failed check blocks only its own version (and arm).
    """
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13, and Dagster warns about that.
        warnings.simplefilter("ignore")
        return [
            dg.AssetCheckSpec(
                name, asset=asset, description=text, blocking=blocking, partitions_def=partitions
            )
            for group, blocking in ((BLOCKING, True), (WARNING, False))
            for name, text in group.get(asset, {}).items()
        ]


def severity(asset: str, check: str) -> dg.AssetCheckSeverity:
    """Return ERROR for a check of broken data, and WARN for a check of quality."""
    blocking = check in BLOCKING.get(asset, {})
    return dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
