"""The sentence of advice follows from the numbers, and says where nothing is resolved."""

from dataclasses import dataclass
from typing import Any

import pytest

from delift_pipeline.bench.advice import advise


@dataclass(frozen=True)
class Cell:
    seed: int
    wrong_share: float = 0.0


def cells(losses: dict[str, list[float]], wrong_share: float = 0.0, **more: Any) -> list[Any]:
    """One cell for each pool, with each selector's loss at a budget of 30 %."""
    pools = range(len(next(iter(losses.values()))))
    row = {"budget": 0.3, "draw": 0, "metric": "answer_loss", "wrong": 0.0, **more}
    return [
        (
            Cell(pool, wrong_share),
            [{**row, "selector": name, "value": own[pool]} for name, own in losses.items()],
        )
        for pool in pools
    ]


FULL = [2.0, 2.1, 1.9]


def test_a_selector_that_loses_little_is_recommended_with_what_it_saves() -> None:
    losses = {"full": FULL, "random": [2.05, 2.16, 1.94], "best": [2.02, 2.12, 1.921]}
    text = advise(cells(losses), equal_epochs=True)
    assert text.startswith("On this data, 30% chosen by best loses 0.020 ± 0.000 nats against")
    assert "the full data and saves 70% of the training" in text
    assert "random loses 0.050 ± 0.006 nats" in text
    assert "best beats random choice (-0.030 ± 0.006 nats over 3 pools)" in text


def test_equal_steps_save_no_training() -> None:
    losses = {"full": FULL, "random": [2.05, 2.16, 1.94], "best": [2.02, 2.12, 1.921]}
    text = advise(cells(losses), equal_epochs=False)
    assert "the full data at equal steps" in text and "saves" not in text


def test_a_difference_that_is_not_resolved_is_not_sold_as_an_advantage() -> None:
    losses = {"full": FULL, "random": [2.05, 2.16, 1.94], "best": [2.0, 2.2, 1.9]}
    text = advise(cells(losses), equal_epochs=False)
    by = "the full data at equal steps by +0.033 ± 0.033 nats, not resolved; random loses 0.050"
    assert f"30% chosen by best differs from {by}" in text
    assert "the best selector, best, is not resolved from random choice" in text
    assert "draw more pools, or choose at random" in text
    assert "beats" not in text


def test_a_selector_that_is_worse_than_random_choice_is_not_recommended() -> None:
    losses = {"random": [2.0, 2.1, 1.9], "a": [2.3, 2.41, 2.2], "b": [2.1, 2.21, 2.0]}
    text = advise(cells(losses), equal_epochs=False)
    assert "choose at random: even the best selector, b, loses to it" in text


def test_one_pool_resolves_nothing() -> None:
    text = advise(cells({"random": [2.0], "best": [1.0]}), equal_epochs=False)
    assert "nothing is resolved by one pool (loss at 30%: best 1.000, random 2.000)" in text


def test_the_advice_is_about_the_least_wrong_share_and_the_greatest_budget() -> None:
    few = {"random": [2.0, 2.1, 1.9], "best": [1.0, 1.11, 0.9]}
    many = {"random": [1.0, 1.1, 0.9], "best": [2.0, 2.1, 1.89]}
    both = cells(few) + cells(few, budget=0.1, value=9.0) + cells(many, 0.15)
    text = advise(both, equal_epochs=False)
    assert text.startswith("On this data") and "best beats random choice" in text
    text = advise(cells(many, 0.15), equal_epochs=False)
    assert text.startswith("With 15% planted wrong answers")


@pytest.mark.parametrize(("share", "end"), [(0.15, "a 5%, random 15%."), (0.0, "could avoid.")])
def test_without_training_it_says_so(share: float, end: str) -> None:
    untrained = [
        (Cell(0, share), [{"selector": n, "budget": 0.3, "metric": "tasks_kept", "wrong": w}])
        for n, w in {"random": share, "a": share / 3}.items()
    ]
    text = advise(untrained, equal_epochs=False)
    assert text.startswith("Nothing was trained") and text.endswith(end)
