"""A ranking by one number a record: the greatest first, ties by record_id.

    f(A) = sum_{j in A} score_j

is modular, so that the ranking by score is the greedy one and a score is its marginal gain.
"""

from collections.abc import Sequence

import numpy as np

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.optimizers import in_order
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import SelectionInputs

DECIMALS = 6
"""Scores are compared after rounding: further decimals depend on the order of sums."""


def by_score(
    selector: str,
    inputs: SelectionInputs,
    ids: Sequence[str],
    scores: np.ndarray,
    budget: int,
    *,
    ties: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Selection:
    """Rank records by score.

    Args:
        selector: Its name.
        inputs: What is chosen from.
        ids: record_ids of the records that have a score.
        scores: float [ids], finite.
        budget: Records asked for; fewer are ranked where fewer have a score.
        ties: float [ids], what decides among equal scores before the record_id does.
        notes: Sentences for the user, beside those on records without a score.

    Raises:
        DeliftError: no record has a score, or a score is not finite.
        Refused: a rule or quota cannot be kept.
    """
    if not len(ids):
        raise DeliftError(f"no record of the pool has scores, so {selector} cannot rank any")
    rounded = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    if not np.isfinite(rounded).all():
        raise DeliftError(f"{selector} gives scores that are not finite; try dtype float32")
    order = _order(ids, rounded, ties)
    count = min(budget, len(ids))
    constraints = inputs.constraints(ids, count)
    picks = _worth(in_order(order, count, constraints), rounded, constraints)
    short = f"the ranking has {len(ids):,} records, fewer than the {budget:,} of the budget"
    return Selection(
        selector=selector,
        ranking=tuple(ids[int(j)] for j in picks),
        gains=rounded[picks],
        objective=f"sum of {selector} scores",
        value=float(rounded[picks].sum()),
        value_random=float(rounded.mean() * len(picks)),
        notes=(
            *notes,
            *inputs.unranked_notes(selector, len(ids)),
            *([short] if budget > len(ids) else ()),
        ),
    )


def refuse_auto(selector: str, inputs: SelectionInputs) -> None:
    """Refuse a budget that stops by gains for a ranking that has none.

    Raises:
        Refused: the budget is `auto`.
    """
    if inputs.allowance is not None and inputs.allowance.stop:
        said = f"{selector} has no gains to stop at; give a share or a count"
        raise Refused(Fault(said, field="budget"))


def _order(ids: Sequence[str], scores: np.ndarray, ties: np.ndarray | None) -> np.ndarray:
    second = np.zeros(len(ids)) if ties is None else np.round(ties, DECIMALS)
    keys = zip(-scores, -second, ids, range(len(ids)), strict=True)
    return np.array([number for *_, number in sorted(keys)], dtype=np.int64)


def _worth(picks: np.ndarray, scores: np.ndarray, constraints: Constraints | None) -> np.ndarray:
    """The picks down to where a budget of `auto` stops; pinned ones stay."""
    if constraints is None or not constraints.stop or not len(picks):
        return picks
    pinned = np.isin(picks, constraints.pinned)
    enough = scores[picks] >= constraints.stop * scores[picks[0]]
    return picks[pinned | np.logical_and.accumulate(enough | pinned)]
