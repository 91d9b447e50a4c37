"""Every selector picks the same records of a pool of 40, in the same order, with the same gains."""

from pathlib import Path
from typing import Any

import pytest

from tests.frozen import snapshot

TOLERANCE = 1e-5


def numbers(picked: dict[str, Any]) -> list[float]:
    """The objective and the gains, where there are any."""
    return [value for value in (picked["objective"], *picked["gains"]) if value is not None]


@pytest.mark.parametrize("name", snapshot.cases())
def test_a_selection_is_the_frozen_one(name: str, delift: Any, tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        return delift(*arguments, "--json").json

    frozen = snapshot.read("picks")[name]
    found = snapshot.picks(run, snapshot.cases()[name], tmp_path)
    assert numbers(found) == pytest.approx(numbers(frozen), rel=TOLERANCE, abs=TOLERANCE)
    for picked in (found, frozen):
        # Where a pick has a gain is compared; how large it is was.
        picked["gains"] = [gain is not None for gain in picked["gains"]]
        picked["objective"] = picked["objective"] is not None
    assert found == frozen


def test_every_selector_is_frozen() -> None:
    frozen = snapshot.read("picks")
    assert set(snapshot.SELECTORS) <= set(frozen)
    assert all(frozen[name]["ids"] for name in snapshot.SELECTORS if name != "initial")
