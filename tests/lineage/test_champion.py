"""Which adapter is the champion: never one that is worse than random or base."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, summarise
from delift_pipeline.lineage.promotion import Candidate, PromotionDecision, decide_promotion

Values = Sequence[float | None]


def measured(values: Values, metric: str = "answer_loss", first: int = 0) -> Evaluation:
    """An evaluation with one metric on records `r<first>`, ...; None leaves a record out."""
    rows = [
        {"record_id": f"r{first + place}", metric: value}
        for place, value in enumerate(values)
        if value is not None
    ]
    samples = pl.DataFrame(rows, schema=SAMPLE_SCHEMA)
    return Evaluation(summarise(samples), samples, {"records": samples.height})


def candidate(
    arm: str,
    own: Values,
    base: Values | None,
    random: Values | None,
    version: str = "v1",
    metric: str = "answer_loss",
    first: int = 0,
) -> Candidate:
    def one(values: Values | None) -> Evaluation | None:
        return None if values is None else measured(values, metric, first)

    mine = measured(own, metric, first)
    return Candidate(version, arm, f"{arm}-hash", mine, one(base), one(random), arm == "random")


def names(decided: PromotionDecision) -> tuple[str | None, str | None]:
    one, two = decided.champion, decided.challenger
    return one.arm if one else None, two.arm if two else None


BASE, RANDOM = [3.0, 3.0, 3.0], [2.0, 2.0, 2.0]


def test_the_best_eligible_is_champion_and_the_second_challenger() -> None:
    field = [
        candidate("good", [1.0, 1.0, 1.0], BASE, RANDOM),
        candidate("best", [0.5, 1.0, 0.5], BASE, RANDOM),
        candidate("random", RANDOM, BASE, None),
    ]
    for order in itertools.permutations(field):
        assert names(decide_promotion(order)) == ("best", "good")


@pytest.mark.parametrize(
    ("base", "random", "said"),
    [
        ([0.9, 0.9, 0.9], RANDOM, "the base model is better by 0.1000"),
        (BASE, [0.9, 0.9, 0.9], "the random arm is better by 0.1000"),
    ],
    ids=["base", "random"],
)
def test_worse_than_base_or_random_is_never_champion(
    base: Values, random: Values, said: str
) -> None:
    worse = candidate("worse", [1.0, 1.0, 1.0], base, random)
    decided = decide_promotion([worse], champion=worse.key)
    assert names(decided) == (None, None)
    assert said in decided.objections[worse.key]


def test_equal_to_random_and_base_is_not_worse() -> None:
    assert names(decide_promotion([candidate("equal", RANDOM, RANDOM, RANDOM)])) == ("equal", None)


def test_a_tie_leaves_the_champion_where_it_is() -> None:
    one = candidate("one", [1.0, 1.0, 1.0], BASE, RANDOM)
    two = candidate("two", [0.5, 1.0, 1.5], BASE, RANDOM)
    assert names(decide_promotion([one, two], champion=two.key)) == ("two", "one")
    assert names(decide_promotion([one, two], champion=one.key)) == ("one", "two")
    assert names(decide_promotion([one, two])) == ("one", "two")


def test_a_better_one_takes_over_and_the_former_champion_challenges() -> None:
    old = candidate("old", [1.0, 1.0, 1.0], BASE, RANDOM)
    new = candidate("new", [0.9, 0.9, 0.9], BASE, RANDOM)
    assert names(decide_promotion([old, new], champion=old.key)) == ("new", "old")


def test_a_champion_that_random_overtakes_loses_its_place() -> None:
    old = candidate("old", [1.0, 1.0, 1.0], BASE, [0.5, 0.5, 0.5])
    random = candidate("random", [0.5, 0.5, 0.5], BASE, None)
    assert names(decide_promotion([old, random], champion=old.key)) == ("random", None)


@pytest.mark.parametrize(
    ("base", "random", "said"),
    [
        (None, RANDOM, "the base model is not evaluated on v1 yet"),
        (BASE, None, "the random arm is not evaluated on v1 yet"),
    ],
    ids=["base", "random"],
)
def test_without_base_or_random_there_is_no_champion(
    base: Values | None, random: Values | None, said: str
) -> None:
    lonely = candidate("lonely", [0.0, 0.0, 0.0], base, random)
    decided = decide_promotion([lonely])
    assert names(decided) == (None, None)
    assert decided.objections[lonely.key] == said


@pytest.mark.parametrize("which", ["own", "base", "random"])
def test_missing_rows_are_no_improvement(which: str) -> None:
    # Without its hardest record each of the three would look better than it is.
    values: dict[str, Values] = {"own": [1.0, 1.0, 2.5], "base": BASE, "random": RANDOM}
    values[which] = [*values[which][:2], None]
    short = candidate("short", values["own"], values["base"], values["random"])
    decided = decide_promotion([short])
    assert names(decided) == (None, None)
    assert "different records (1 in one only)" in decided.objections[short.key]


def test_a_loss_that_is_not_finite_is_no_champion() -> None:
    burst = candidate("burst", [math.nan, 0.0, 0.0], BASE, RANDOM)
    decided = decide_promotion([burst])
    assert names(decided) == (None, None)
    assert "is nan" in decided.objections[burst.key]


def test_the_metrics_direction_counts() -> None:
    good, bad = [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]
    better = candidate("better", good, bad, bad, metric="exact_match")
    worse = candidate("worse", bad, bad, good, metric="exact_match")
    assert names(decide_promotion([better, worse])) == ("better", None)


def test_a_candidate_without_the_deciding_metric_is_not_eligible() -> None:
    one = candidate("one", [1.0, 1.0, 1.0], BASE, RANDOM)
    other = candidate("other", [1.0, 1.0, 1.0], [0.0] * 3, [0.0] * 3, metric="exact_match")
    decided = decide_promotion([other, one])
    assert names(decided) == ("one", None)
    assert decided.objections[other.key] == "its answer loss was not measured"


def test_versions_are_compared_on_the_records_they_share() -> None:
    old = candidate("old", [1.0, 1.0, 1.0], BASE, RANDOM)
    # On r2, which both know, the new one loses; its own records do not count against the old one.
    new = candidate("new", [1.5, 0.1, 0.1], BASE, RANDOM, version="v2", first=2)
    assert names(decide_promotion([old, new], champion=old.key)) == ("old", "new")
    better = replace(new, own=measured([0.9, 2.0, 2.0], first=2))
    assert names(decide_promotion([old, better], champion=old.key)) == ("new", "old")


def test_versions_without_a_common_record_leave_the_champion_where_it_is() -> None:
    old = candidate("old", [1.0, 1.0, 1.0], BASE, RANDOM)
    new = candidate("new", [0.1, 0.1, 0.1], BASE, RANDOM, version="v2", first=9)
    assert names(decide_promotion([old, new], champion=old.key)) == ("old", "new")


def test_nothing_evaluated_is_no_contest() -> None:
    assert decide_promotion([]) == PromotionDecision(None, None, None, {})


losses = st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(losses, min_size=1, max_size=4), losses, losses, st.integers(-1, 4), st.randoms())
def test_no_champion_is_ever_worse_than_random_base_or_another(
    owns: list[Values], base: Values, random: Values, incumbent: int, shuffle
) -> None:
    arms = [candidate(f"arm{place}", own, base, random) for place, own in enumerate(owns)]
    arms.append(candidate("random", random, base, None))
    champion = arms[incumbent].key if 0 <= incumbent < len(arms) else None
    decided = decide_promotion(arms, champion)

    def total(values: Values) -> float:
        return sum(value for value in values if value is not None)

    def loss(one: Candidate) -> float:
        return total(one.own.samples["answer_loss"].to_list())

    allowed = {a.key for a in arms if loss(a) <= total(base) and loss(a) <= total(random)}
    assert {a.key for a in arms} - set(decided.objections) == allowed
    assert (decided.champion is None) == (not allowed)
    if decided.champion is not None:
        best = min(loss(a) for a in arms if a.key in allowed)
        assert loss(decided.champion) == best
        stays = champion in allowed and loss(next(a for a in arms if a.key == champion)) == best
        assert not stays or decided.champion.key == champion
    shuffle.shuffle(arms)
    assert decide_promotion(arms, champion) == decided
