"""Which adapter is the champion of its data set, stage and base model, and which the challenger.

The rule, on one metric (the first that any candidate measured, in the order tables show them):

1. A candidate is eligible if it is not worse than the base model nor than its stage's random arm
   on the same version: the mean difference, paired by held-out record, has the right sign or is
   zero. A random arm is held against the base model alone.
2. What cannot be compared is not eligible: a metric that was not measured or is not finite, a base
   model or random arm that is not evaluated yet, and rows that are missing: a held-out record that
   only one of the two was measured on, since leaving out hard records would look like an
   improvement.
3. The champion stays while it is eligible, and a tie leaves it where it is. A candidate takes over
   only if it is better on the held-out records both were measured on, of which there must be one.
   Among candidates without a champion the same contest is held in order of version and arm.
4. The challenger is the winner of the same contest among the eligible rest.

The means decide, their standard errors are only told: the rule keeps a worse adapter from being
champion, it does not claim that the champion's lead is significant.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl

from delift_pipeline.evaluation.options import METRICS, MetricName
from delift_pipeline.evaluation.result import Difference, Evaluation, differences
from delift_pipeline.formatting import with_error


@dataclass(frozen=True)
class Candidate:
    """An evaluated adapter and what it must not be worse than.

    Attributes:
        version: The dataset version.
        arm: The arm.
        adapter: The adapter's content hash.
        own: Its evaluation.
        base: The base model's on the same held-out set; None where it is missing.
        random: The stage's random arm's; None where it is missing.
        is_random: Whether this is a random arm itself.
    """

    version: str
    arm: str
    adapter: str
    own: Evaluation = field(repr=False)
    base: Evaluation | None = field(repr=False)
    random: Evaluation | None = field(repr=False, default=None)
    is_random: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells adapters apart."""
        return self.version, self.arm, self.adapter


@dataclass(frozen=True)
class Standing:
    """The outcome of a contest.

    Attributes:
        metric: The metric that decided; None where nothing was measured.
        champion: The best eligible adapter, or None.
        challenger: The best of the others, or None.
        objections: Candidate -> why it is not eligible.
    """

    metric: MetricName | None
    champion: Candidate | None
    challenger: Candidate | None
    objections: dict[tuple[str, str, str], str]


def standing(
    candidates: Sequence[Candidate],
    champion: tuple[str, str, str] | None = None,
) -> Standing:
    """Decide the contest.

    Args:
        candidates: Every evaluated adapter that takes part.
        champion: The key of the present champion, if there is one.
    """
    metric = deciding_metric(candidates)
    if metric is None:
        return Standing(None, None, None, {})
    found = {one.key: objection(one, metric) for one in candidates}
    eligible = sorted(
        (one for one in candidates if found[one.key] is None),
        key=lambda one: (one.key != champion, one.key),
    )
    best = _winner(eligible, metric)
    second = _winner([one for one in eligible if one is not best], metric)
    return Standing(metric, best, second, {key: why for key, why in found.items() if why})


def deciding_metric(candidates: Iterable[Candidate]) -> MetricName | None:
    """The first metric, in the order tables show them, that any candidate measured."""
    measured = {name for one in candidates for name in one.own.metrics}
    return next((name for name in METRICS if name in measured), None)


def objection(candidate: Candidate, metric: MetricName) -> str | None:
    """Why a candidate cannot be champion, in a few words; None where it can."""
    title = METRICS[metric].title
    value = candidate.own.metrics.get(metric)
    if value is None or not math.isfinite(value):
        return f"its {title} was not measured" if value is None else f"its {title} is {value}"
    references = {"the base model": candidate.base}
    if not candidate.is_random:
        references["the random arm"] = candidate.random
    for name, reference in references.items():
        if reference is None:
            return f"{name} is not evaluated on {candidate.version} yet"
        why = _worse(candidate.own, reference, metric)
        if why:
            return f"{title} {why.format(name=name)}"
    return None


def _worse(own: Evaluation, reference: Evaluation, metric: MetricName) -> str | None:
    missing = rows(reference, metric) ^ rows(own, metric)
    if missing:
        return f"and that of {{name}} are on different records ({len(missing)} in one only)"
    gap = differences(own, reference)[metric]
    if gap.improvement >= 0:
        return None
    return f"{{name}} is better by {with_error(-gap.improvement, gap.se, 4, ascii_only=True)}"


def rows(evaluation: Evaluation, metric: MetricName) -> set[str]:
    """The held-out records that a metric was measured on."""
    samples = evaluation.samples
    if metric not in samples.columns:
        return set()
    return set(samples.filter(pl.col(metric).is_not_null())["record_id"])


def _winner(eligible: Sequence[Candidate], metric: MetricName) -> Candidate | None:
    """Each in turn against the best so far; a tie leaves the earlier one where it is."""
    best: Candidate | None = None
    for one in eligible:
        if best is None or _is_better(one, best, metric):
            best = one
    return best


def _is_better(one: Candidate, other: Candidate, metric: MetricName) -> bool:
    gap: Difference | None = differences(one.own, other.own).get(metric)
    return gap is not None and gap.improvement > 0
