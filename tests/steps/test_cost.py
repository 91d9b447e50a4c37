"""Costs in sentences."""

import pytest

from delift_pipeline.steps.cost import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (40, "40 s"),
        (89.4, "89 s"),
        (240, "4 minutes"),
        (5399, "90 minutes"),
        (9000, "2.5 hours"),
        (200_000, "2 days"),
    ],
)
def test_duration_is_said_in_the_unit_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said
