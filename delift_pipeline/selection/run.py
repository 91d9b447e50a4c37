"""Run a selection and store its subset, for both the asset and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel

from delift_pipeline.core.atomic import replace_folder, write_parquet
from delift_pipeline.core.errors import InputError
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.selection.budget import Budget, BudgetText, is_full, parse_budget
from delift_pipeline.selection.contribution import count_changed_picks
from delift_pipeline.selection.diagnostics import balance_table
from delift_pipeline.selection.optimizers import knee_of
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.ranking import replay_schedule
from delift_pipeline.selection.registry import (
    get_selector,
    needs_of,
    options_of,
    replay_share,
    traits_of,
)
from delift_pipeline.selection.result import Selection, subset_frames
from delift_pipeline.selection.rules import RuleOptions, Rules, find_violations, token_cost
from delift_pipeline.selection.selector import SelectionInputs, count_unscorable
from delift_pipeline.selection.trust import suspects_frame

SUBSET, DROPPED = "subset.parquet", "dropped.parquet"
SUSPECTS, BALANCE = "suspects.parquet", "balance.parquet"
CHANGED = "picks_changed_by_model"
"""The key of that number in a manifest and in a report; null if no language model was read."""


def select(
    inputs: SelectionInputs,
    selector: str,
    budget: float | int | str,
    seed: int,
    options: Mapping[str, Any] | BaseModel,
    rules: Rules | None = None,
) -> Selection:
    """Rank the records of a pool with a budget, see `parse_budget`.

    `seed` decides everything random. `rules` replace those of `inputs`.

    Raises:
        InputError: The selector, an option, the budget or a rule is not possible.
        DeliftError: Scores that the selector reads are missing.
    """
    options = options_of(selector, options)
    rules, n = rules or inputs.rules, inputs.pool.height
    allowed = check_budget(selector, inputs.stage, budget, rules != Rules(), n, options)
    inputs = replace(inputs, rules=rules, allowance=allowed)
    selection = get_selector(selector).select(inputs, allowed.count, seed, options)
    if traits_of(selector).reference != "whole":
        # A selector may ignore budgets in tokens or rules, so its result is checked here.
        gains = [None] * len(selection.ranking)
        if selection.gains is not None:
            gains = [None if np.isnan(gain) else gain for gain in selection.gains.tolist()]
        if allowed.stop and all(gain is None for gain in gains):
            reason = f"{selection.selector} has no gains, so auto cannot stop it. Give a count"
            raise InputError(reason, field="budget")
        if wrong := find_violations(selection.ranking, gains, inputs.pool, allowed, rules):
            reason = f"{selection.selector} violates the budget or the rules: {'; '.join(wrong)}"
            raise InputError(f"{reason}. Choose another selector", field="budget")
    needs = needs_of(selector, inputs.stage, options)
    changed = count_changed_picks(inputs, selection, needs, options)
    details = {**selection.details, CHANGED: changed}
    if allowed.tokens is not None:
        details["tokens"] = token_cost(inputs.pool, selection.ranking)
    if selection.gains is not None and len(selection.gains):
        details["knee"] = knee_of(selection.gains[~np.isnan(selection.gains)])
    return replace(selection, details=details)


def check_budget(
    selector: str,
    stage: Stage,
    budget: float | int | str,
    has_rules: bool,
    n: int,
    options: Mapping[str, Any] | BaseModel,
) -> Budget:
    """Return the limits that a budget sets, after a check that the selector can obey them.

    Raises:
        InputError: The budget is not valid, or the selector cannot obey it or any rules.
    """
    allowed, reference = parse_budget(budget, n), get_selector(selector).traits.reference
    if reference == "whole" and (has_rules or allowed.is_open_ended):
        reason = f"{selector} takes every record. Choose another selector"
        raise InputError(reason, field="budget")
    if reference == "random" and allowed.stop:
        reason = f"{selector} has no gains, so auto cannot stop it. Give a count"
        raise InputError(reason, field="budget")
    if allowed.is_open_ended and replay_share(selector, stage, options):
        reason = "a budget in tokens or auto does not work with replay. Give a share or a count"
        raise InputError(f"{reason}, or set replay to 0", field="budget")
    return allowed


ADVICE = "Raise the window, shorten the answers, or choose a selector that needs no scores (random)"


def refuse_unscorable(records: pl.DataFrame, unscorable: Mapping[str, str], what: str) -> None:
    """Refuse records if none can be scored. `what` names them in the message.

    `unscorable` gives the reason by record_id, here and below.

    Raises:
        InputError: None can be scored; the message has the reason for the first.
    """
    count, first = count_unscorable(records, unscorable)
    if count and count == records.height:
        reason = f"none of the {count:,} {what} can be scored (first: {first}). {ADVICE}"
        raise InputError(reason, field="window")


def unscorable_notes(
    records: pl.DataFrame, unscorable: Mapping[str, str], what: str
) -> tuple[str, ...]:
    """Return a note on how many records cannot be scored and why the first cannot, if any."""
    count, first = count_unscorable(records, unscorable)
    return (f"{count:,} {what} cannot be scored (first: {first})",) if count else ()


def refuse_beyond_scorable(
    selector: str,
    stage: Stage,
    options: Mapping[str, Any] | BaseModel,
    budget: BudgetText,
    pool: pl.DataFrame,
    existing: pl.DataFrame | None,
    unscorable: Mapping[str, str],
) -> tuple[float, int]:
    """Refuse a budget above the number of records that can be ranked.

    The budgets `full`, tokens and `auto` take at most the records that there are.

    Returns:
        The share of the picks that the selector replays, and how many existing records can be.

    Raises:
        InputError: The budget is too large; the message says why the first record is unscorable.
    """
    share, replayable = 0.0, 0
    if stage == "continual" and existing is not None:
        share, replayable = replay_share(selector, stage, options), existing.height
        if needs_of(selector, stage, options).replay_pairs:
            replayable -= count_unscorable(existing, unscorable)[0]
    allowed, (bad, first) = parse_budget(budget, pool.height), count_unscorable(pool, unscorable)
    if bad and not allowed.is_open_ended and not is_full(budget):
        scorable = pool.height - bad
        possible = len(replay_schedule(allowed.count, share, scorable, replayable).replays)
        if possible < allowed.count:
            reason = (
                f"the budget is {allowed.count:,} records, but only {scorable:,} of "
                f"{pool.height:,} can be scored (first that cannot: {first}). Lower the budget to "
                f"{possible:,}. Or: {ADVICE}"
            )
            raise InputError(reason, field="budget")
    return share, replayable


def selection_request(
    stage: Stage,
    selector: str,
    budget: float | int | str,
    seed: int,
    options: Mapping[str, Any] | BaseModel,
    rules: RuleOptions | None = None,
) -> dict[str, Any]:
    """Return the request of a selection for its manifest, and rules if any.

    It has all options, also those at their defaults. Only an option that is newer than stored
    subsets is left out at its default (`exclude_if`).

    Raises:
        InputError: The selector or an option is not possible.
    """
    return {
        "stage": stage,
        "selector": selector,
        "budget": budget,
        "seed": seed,
        "options": options_of(selector, options).model_dump(mode="json"),
        **({"rules": rules.model_dump(mode="json")} if rules and rules.has_rules else {}),
    }


def subset_parents(
    version: str, pool_hash: str, blocks: Mapping[str, str], extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the parents of a subset: the version's records and the kernel blocks that were read.

    `blocks` are block -> hash. `extra` are other parents, such as the subset that gave D_E.
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
    """Write a subset with its dropped and suspected records, its balance and its manifest.

    The files are `subset.parquet`, `dropped.parquet`, `suspects.parquet` (if near pairs were
    scored) and `balance.parquet`, also by the columns `balance_by`. They replace a former subset.

    The content hash covers the records and their order, because training reads nothing else. So a
    gain that changes in its last digit does not repeat a training. `fingerprint` is that of the
    scores that were read, if any.
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
    with replace_folder(folder) as temporary:
        write_parquet(temporary / SUBSET, subset)
        write_parquet(temporary / DROPPED, dropped)
        write_parquet(temporary / BALANCE, balance_table(pool, selection.ranking, columns))
        if (trust := selection.trust) is not None:
            write_parquet(temporary / SUSPECTS, suspects_frame(trust, selection.ranking, pool))
        manifest.write(temporary)
    return manifest
