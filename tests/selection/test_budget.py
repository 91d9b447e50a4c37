"""What a budget buys."""

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.budget import resolve_budget


@pytest.mark.parametrize(
    ("budget", "n", "count"),
    [
        (0.3, 10, 3),
        (0.3, 5, 2),  # 1.5 rounds up
        (0.15, 10, 2),  # 1.5 in decimals, whatever the binary float says
        (0.145, 100, 15),
        (0.001, 10, 1),
        (0.999, 10, 10),
        (1, 10, 1),
        (10, 10, 10),
        ("full", 7, 7),
        (" Full ", 7, 7),
        ("0.5", 7, 4),
        ("3", 7, 3),
    ],
)
def test_shares_counts_and_full(budget, n: int, count: int) -> None:
    assert resolve_budget(budget, n) == count


@pytest.mark.parametrize(
    "budget",
    [0, -1, 0.0, -0.5, 1.0, 1.5, float("nan"), float("inf"), True, "30%", "", "all", "1.0"],
)
def test_anything_else_is_refused_with_what_is_meant(budget) -> None:
    with pytest.raises(InputError, match="below 1 for a share"):
        resolve_budget(budget, 10)


def test_above_the_pool_and_an_empty_pool_are_refused() -> None:
    with pytest.raises(InputError, match="11 is above the pool's 10 records"):
        resolve_budget(11, 10)
    with pytest.raises(InputError, match="the pool is empty"):
        resolve_budget("full", 0)
