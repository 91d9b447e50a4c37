"""The checks of every asset: blocking ones stop what follows, the others warn."""

import warnings

import dagster as dg

BLOCKING: dict[str, dict[str, str]] = {
    "raw_dataset": {
        "schema": "The columns and types are those that the later steps read.",
        "not_empty": "The pool, the held-out set and the target set, if any, have records.",
        "disjoint": "No record is in two of pool (or a parent's), target and held-out set.",
    },
    "pair_plan": {"neighbours": "Every record has neighbours, or a reason why it has none."},
    "baseline_logprobs": {
        "complete": "Every record has its scores with and without prompt, or is unscorable.",
        "finite": "Log-probabilities are finite and at most 0.",
    },
    "in_context_logprobs": {
        "complete": "Every planned pair is scored, or one of its records is unscorable.",
        "finite": "Log-probabilities are finite and at most 0.",
    },
    "utility_kernel": {"shape": "All blocks have the plan's shape and only finite values."},
    "subset": {
        "budget": "The subset has the size of the budget, or a note says why it is smaller.",
        "known": "Every pick is in the pool or, in the continual stage, an existing record.",
        "unique": "No record is picked twice.",
    },
    "adapter": {"loads": "The weights are readable safetensors with finite values."},
}

WARNING: dict[str, dict[str, str]] = {
    "raw_dataset": {"inbox": "No file in the inbox with this version's name was rejected."},
    "utility_kernel": {"positive": "Some demonstrations help: some utilities are above 0."},
    "subset": {
        "trust": "The trust of the picks is at most .01 below the pool's, or is not known.",
        "balance": "No group (task, source, length, script or own column) of the pool is missing.",
    },
    "adapter": {"loss_fell": "The loss fell from the first tenth of the steps to the last."},
    "eval_report": {
        "beats_base": "The answer loss is not above the base model's.",
        "beats_random": "The answer loss is not above that of the same stage's random arm.",
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
