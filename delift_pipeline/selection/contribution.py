"""How many picks of a selection the language model changed.

The reference is coverage alone: the records that `delift_se` chooses at the same stage, with the
same budget, rules and number of picks, on embeddings that need no language model. Its embedder and
the parameters of its objective are those of the selector where the selector has them, else tf-idf
and the defaults. It chooses among the records that the selector could rank. Replayed records are
compared with coverage of the existing records.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.embedding import MODEL
from delift_pipeline.selection.optimizers import lazy_greedy, tie_order_of
from delift_pipeline.selection.options import (
    EmbeddingOptions,
    ObjectiveName,
    SelectorOptions,
    TrustedOptions,
)
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.selectors.delift_se import coverage_part

PARAMETERS = ("objective", "eta", "nu", "dense_limit", "coverage_neighbours")
DEFAULT_EMBEDDER = "tfidf"


def count_changed_picks(
    inputs: SelectionInputs, selection: Selection, needs: Needs, options: BaseModel
) -> int | None:
    """Return how many picks coverage alone would not make; None if no model was read.

    It is also None if the inputs lack the texts of the target set or of existing records.

    `inputs` are those of the selection, with its rules and allowance.

    Raises:
        InputError: The embedder cannot be loaded.
    """
    targetless = inputs.stage == "task_specific" and inputs.target is None
    textless = not set(inputs.existing) <= set(inputs.records["record_id"])
    if not needs.reads_model or targetless or textless:
        return None
    old = set() if selection.replayed is None else set(selection.replayed["record_id"])
    new = [record for record in selection.ranking if record not in old]
    unranked = inputs.unscorable.keys() if needs.scores else ()
    candidates = set(inputs.pool["record_id"]).difference(unranked)
    if selection.trust is not None:
        candidates &= set(selection.trust.ids)
    # A selector that reads no existing records is compared with coverage of the new ones.
    beyond = inputs.stage != "continual" or inputs.existing
    covering = set(_cover(inputs, sorted(candidates), len(new), options, None if beyond else "fl"))
    if old:
        gone = unranked if needs.replay_pairs else ()
        past = replace(inputs, rules=Rules(), allowance=None)
        ids = sorted(set(inputs.existing).difference(gone))
        covering |= set(_cover(past, ids, len(old), options, "fl"))
    return len(set(selection.ranking) - covering)


def coverage_embedder(options: BaseModel) -> str:
    """Return what embeds records for coverage alone: never the language model."""
    named = getattr(options, "embedder", DEFAULT_EMBEDDER)
    return DEFAULT_EMBEDDER if named == MODEL else named


def changed_picks_sentence(changed: int, picks: int, options: BaseModel) -> str:
    """Say how many picks the model changed. The sentence is a warning if there are none."""
    embedder = coverage_embedder(options)
    alone = f"coverage by {'tf-idf' if embedder == DEFAULT_EMBEDDER else embedder} alone"
    if not changed:
        reason = f"The model changed none of the {picks:,} picks."
        return f"warning: {reason} C{alone[1:]} chooses the same records"
    return f"the model changed {changed:,} of the {picks:,} picks, compared with {alone}"


def _cover(
    inputs: SelectionInputs,
    ids: Sequence[str],
    count: int,
    options: BaseModel,
    objective: ObjectiveName | None,
) -> list[str]:
    """Return the records that coverage alone picks among `ids`, best first.

    Without an `objective` it maximises that of the options, else that of the stage.
    """
    values: dict[str, Any] = {"embedder": coverage_embedder(options)}
    if isinstance(options, SelectorOptions | TrustedOptions | EmbeddingOptions):
        values |= {name: getattr(options, name) for name in PARAMETERS if hasattr(options, name)}
    if objective:
        values["objective"] = objective
    part = coverage_part(inputs, tuple(ids), EmbeddingOptions.model_validate(values))
    allowance = inputs.allowance
    if allowance is not None and allowance.tokens is not None:
        count = min(allowance.count, len(ids))
    elif allowance is not None:
        # Coverage alone stops elsewhere with `auto`, so the number of picks is given.
        inputs = replace(inputs, allowance=Budget(count))
    constraints = inputs.constraints(part.columns, count)
    ranking = lazy_greedy(part.objective, count, tie_order_of(part.columns), constraints)
    return [part.columns[pick] for pick in ranking.picks.tolist()]
