"""Select and keep what was selected: the one door for the asset and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel

from delift_pipeline.core.atomic import replacing_folder, write_parquet
from delift_pipeline.core.errors import Refused
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.selection.budget import Budget, parse_budget
from delift_pipeline.selection.diagnostics import balance
from delift_pipeline.selection.optimizers import knee_of
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import (
    options_of,
    replay_share,
    selector_named,
    traits_of,
)
from delift_pipeline.selection.result import Selection, subset_frames
from delift_pipeline.selection.rules import RuleOptions, Rules, broken, spent
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.trust import suspects_frame

SUBSET, DROPPED = "subset.parquet", "dropped.parquet"
SUSPECTS, BALANCE = "suspects.parquet", "balance.parquet"


def select(
    inputs: SelectionInputs,
    selector: str,
    budget: float | int | str,
    seed: int,
    options: Mapping[str, Any] | BaseModel,
    rules: Rules | None = None,
) -> Selection:
    """Rank the records of a pool under a budget.

    Args:
        inputs: The pool and where its kernel blocks come from.
        selector: A name in the registry.
        budget: A share, a count or `full`, of the whole pool; tokens such as `20000tokens`; or
            `auto`, which stops where picks no longer pay.
        seed: Decides everything random.
        options: The selector's options.
        rules: None: those of `inputs`.

    Raises:
        Refused: the selector, an option, the budget or a rule is not possible.
        DeliftError: scores that the selector reads are missing.
    """
    checked = options_of(selector, options)
    rules, n = rules or inputs.rules, inputs.pool.height
    allowed = refuse_impossible(selector, inputs.stage, budget, rules != Rules(), n, checked)
    asked = replace(inputs, rules=rules, allowance=allowed)
    selection = selector_named(selector).select(asked, allowed.count, seed, checked)
    if traits_of(selector).reference != "whole":
        _check_kept(selection, asked, allowed)
    details = dict(selection.details)
    if allowed.tokens is not None:
        details["tokens"] = spent(inputs.pool, selection.ranking)
    if selection.gains is not None and len(selection.gains):
        details["knee"] = knee_of(selection.gains[~np.isnan(selection.gains)])
    return replace(selection, details=details)


def refuse_impossible(
    selector: str,
    stage: Stage,
    budget: float | int | str,
    ruled: bool,
    n: int,
    options: Mapping[str, Any] | BaseModel,
) -> Budget:
    """What a budget allows, unless the selector has no way to keep to it.

    Raises:
        Refused: the budget means nothing, or the selector cannot keep to it or to rules.
    """
    allowed, reference = parse_budget(budget, n), selector_named(selector).traits.reference
    if reference == "whole" and (ruled or allowed.open_ended):
        said = f"{selector} takes every record; choose another selector"
        raise Refused(said, field="budget")
    if reference == "random" and allowed.stop:
        raise Refused(f"{selector} has no gains to stop at; give a count", field="budget")
    if allowed.open_ended and replay_share(selector, stage, options):
        said = "a budget in tokens or auto cannot be shared with replay; give a share or a count"
        raise Refused(f"{said}, or set replay to 0", field="budget")
    return allowed


def _check_kept(selection: Selection, inputs: SelectionInputs, allowed: Budget) -> None:
    """Refuse the ranking of a selector that knows nothing of a budget or of rules."""
    gains = [None] * len(selection.ranking) if selection.gains is None else selection.gains.tolist()
    gains = [None if gain is None or np.isnan(gain) else gain for gain in gains]
    if allowed.stop and all(gain is None for gain in gains):
        said = f"{selection.selector} has no gains to stop at; give a count"
        raise Refused(said, field="budget")
    if wrong := broken(selection.ranking, gains, inputs.pool, allowed, inputs.rules):
        said = f"{selection.selector} does not keep to what was asked: {'; '.join(wrong)}"
        raise Refused(said, field="budget")


def selection_request(
    stage: Stage,
    selector: str,
    budget: float | int | str,
    seed: int,
    options: Mapping[str, Any] | BaseModel,
    rules: RuleOptions | None = None,
) -> dict[str, Any]:
    """What was asked for, as the subset's manifest records it; defaults are spelled out.

    Rules stand in it where there are any.

    Raises:
        Refused: the selector or an option is not possible.
    """
    return {
        "stage": stage,
        "selector": selector,
        "budget": budget,
        "seed": seed,
        "options": options_of(selector, options).model_dump(mode="json"),
        **({"rules": rules.model_dump(mode="json")} if rules and rules.asked else {}),
    }


def subset_parents(
    version: str, pool_hash: str, blocks: Mapping[str, str], extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a subset is made of: the version's records and the kernel blocks read, nothing else.

    Args:
        version: The dataset version.
        pool_hash: Its content hash.
        blocks: Kernel block -> hash, for the blocks the selector reads.
        extra: Other parents, such as the parent's subset that gave D_E.
    """
    kernels = {f"kernel:{version}:{name}": value for name, value in blocks.items()}
    return {f"dataset:{version}": pool_hash, **kernels, **(extra or {})}


def write_subset(
    folder: Path,
    selection: Selection,
    pool: pl.DataFrame,
    *,
    request: dict[str, Any],
    parents: dict[str, str],
    fingerprint: str | None = None,
    code_version: str = "1",
    run_id: str | None = None,
    balance_by: Sequence[str] = (),
) -> Manifest:
    """Write the chosen, the dropped and the suspected records, the balance and the manifest, whole.

    The files are `subset.parquet`, `dropped.parquet`, `suspects.parquet` (where near pairs were
    scored) and `balance.parquet`.

    The content hash covers the records and their order, which is all that training reads: a gain
    that moves in its last digit trains nothing again.

    Args:
        folder: A former subset there is replaced.
        selection: What was chosen from `pool`.
        pool: The records it was chosen from.
        request: See `selection_request`.
        parents: See `subset_parents`.
        fingerprint: The scoring fingerprint, where scores were read.
        code_version: The asset's.
        run_id: Dagster's.
        balance_by: Further columns of the pool to compare pool and subset by.
    """
    subset, dropped = subset_frames(selection, pool)
    manifest = Manifest(
        kind="subset",
        content_hash=digest_text(*selection.ranking),
        parents=parents,
        fingerprint=fingerprint,
        counts={"pool": pool.height, "selected": subset.height, "dropped": dropped.height},
        details={
            "objective": selection.objective,
            "value": selection.value,
            "value_random": selection.value_random,
            "blocks": selection.blocks,
            "notes": list(selection.notes),
            "diagnostics": selection.diagnostics.as_json() if selection.diagnostics else {},
            **selection.details,
        },
        request=request,
        code_version=code_version,
        run_id=run_id,
    )
    columns = {name: pool[name].to_list() for name in balance_by if name in pool.columns}
    with replacing_folder(folder) as temporary:
        write_parquet(temporary / SUBSET, subset)
        write_parquet(temporary / DROPPED, dropped)
        write_parquet(temporary / BALANCE, balance(pool, selection.ranking, columns))
        if (trust := selection.trust) is not None:
            write_parquet(temporary / SUSPECTS, suspects_frame(trust, selection.ranking, pool))
        manifest.write(temporary)
    return manifest
