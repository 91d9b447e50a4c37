"""One sentence of advice from the results of `delift bench quality --data`."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from delift_pipeline.bench.table import RESOLVED_ERRORS, Row, mean_by_pool, paired_difference
from delift_pipeline.core.formatting import with_error

REFERENCES = ("initial", "random", "full")
"""Selectors that others are compared with, and that nobody needs advice about."""
LOSS = "answer_loss"
Gap = tuple[float, float | None]
"""A mean paired difference and its standard error, which is None for one pool."""


def advise(cells: Sequence[tuple[Any, Sequence[Row]]], *, equal_epochs: bool) -> str:
    """Return the advice: whether to select, how, and what it saves.

    It is about the smallest share of planted wrong answers and the greatest budget. The best
    selector is the one with the least held-out loss.

    Args:
        cells: Each cell (with `seed` and `wrong_share`) and its rows.
        equal_epochs: Whether every run made equally many passes over its own records.
    """
    least = min(cell.wrong_share for cell, _ in cells)
    rows = [(cell.seed, row) for cell, own in cells for row in own if cell.wrong_share == least]
    budget = max(row["budget"] for _, row in rows)
    groups: dict[str, dict[int, list[Row]]] = {}
    for seed, row in rows:
        if row["budget"] == budget and row["metric"] == LOSS:
            groups.setdefault(row["selector"], {}).setdefault(seed, []).append(row)
    start = f"With {least:.0%} planted wrong answers" if least else "On this data"
    if not groups:
        return _describe_wrong(cells)
    losses = {name: mean_by_pool(pools, "value") for name, pools in groups.items()}
    return f"{start}, {_compare(losses, f'{budget:.0%}', budget, equal_epochs)}."


def _describe_wrong(cells: Sequence[tuple[Any, Sequence[Row]]]) -> str:
    """Return how many wrong answers each selector chose, where nothing was trained."""
    most = max(cell.wrong_share for cell, _ in cells)
    start = "Nothing was trained, so this says nothing about the loss after training"
    if not most:
        return f"{start}, and no wrong answers were planted that a selector could avoid."
    shares: dict[str, list[float]] = {}
    for row in (row for cell, own in cells for row in own if cell.wrong_share == most):
        shares.setdefault(row["selector"], []).append(row["wrong"])
    by_share = sorted((mean(own), name) for name, own in shares.items())
    listed = ", ".join(f"{name} {share:.0%}" for share, name in by_share)
    return f"{start}; wrong answers among the picks, with {most:.0%} in the pool: {listed}."


def _compare(
    losses: Mapping[str, Mapping[int, float]], share: str, budget: float, equal_epochs: bool
) -> str:
    """Return the clauses that compare the best selector with random choice and the full data."""
    means = {name: mean(values.values()) for name, values in losses.items()}
    candidates = [name for name in losses if name not in REFERENCES]
    best = min(candidates, key=lambda name: means[name], default="random")
    pools = len(losses[best])
    if pools < 2:
        seen = ", ".join(f"{name} {value:.3f}" for name, value in sorted(means.items()))
        return f"nothing is resolved by one pool (loss at {share}: {seen}); draw more pools"
    over_random = _gap(losses, best, "random")
    over_full, random_over_full = _gap(losses, best, "full"), _gap(losses, "random", "full")
    saved = f" and saves {1 - budget:.0%} of the training" if equal_epochs else ""
    against = "the full data" if equal_epochs else "the full data at equal steps"
    clauses = []
    if over_full is not None:
        chosen = f"{share} chosen by {best}" if best != "random" else f"{share} chosen at random"
        clauses.append(f"{chosen} {_loses(over_full, against)}{saved}")
    if best == "random":
        return clauses[0] if clauses else "there is nothing to compare random choice with"
    if random_over_full is not None:
        clauses.append(f"random {_loses(random_over_full)}")
    assert over_random is not None, "random choice is always measured"
    text = f"{with_error(*over_random, sign=True, ascii_only=True)} nats over {pools} pools"
    if not _is_resolved(over_random):
        verdict = f"the best selector, {best}, is not resolved from random choice ({text})"
        clauses.append(f"{verdict}: draw more pools, or choose at random")
    elif over_random[0] > 0:
        clauses.append(f"choose at random: even the best selector, {best}, loses to it ({text})")
    else:
        clauses.append(f"{best} beats random choice ({text})")
    return "; ".join(clauses)


def _gap(losses: Mapping[str, Mapping[int, float]], own: str, other: str) -> Gap | None:
    """Return how much greater the loss of `own` is, paired by pool; None if one is missing."""
    if own not in losses or other not in losses:
        return None
    gap, error = paired_difference(losses[own], losses[other])
    return None if gap is None else (gap, error)


def _loses(gap: Gap, other: str = "") -> str:
    """Return what a selector loses or gains against another, or that this is not resolved."""
    if not _is_resolved(gap):
        place = f" from {other}" if other else ""
        return (
            f"differs{place} by {with_error(*gap, sign=True, ascii_only=True)} nats, not resolved"
        )
    verb, place = "loses" if gap[0] > 0 else "gains", f" against {other}" if other else ""
    return f"{verb} {with_error(abs(gap[0]), gap[1])} nats{place}"


def _is_resolved(gap: Gap) -> bool:
    return gap[1] is not None and abs(gap[0]) > RESOLVED_ERRORS * gap[1]
