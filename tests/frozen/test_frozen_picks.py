"""Every selector picks the same records of a pool of 40, in the same order, with the same gains."""

from pathlib import Path
from typing import Any

import pytest

from tests.frozen import snapshot

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", snapshot.cases())
def test_a_selection_is_the_frozen_one(name: str, delift: Any, tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        return delift(*arguments, "--json").json

    frozen = snapshot.read("picks")[name]
    found = snapshot.picks(run, snapshot.cases()[name], tmp_path)
    for number in ("gains", "objective"):
        wanted, given = frozen.pop(number), found.pop(number)
        if wanted is None or None in (wanted if isinstance(wanted, list) else ()):
            assert given == wanted
        else:
            assert given == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
    assert found == frozen


def test_every_selector_is_frozen() -> None:
    frozen = snapshot.read("picks")
    assert set(snapshot.SELECTORS) <= set(frozen)
    assert all(frozen[name]["ids"] for name in snapshot.SELECTORS if name != "initial")
