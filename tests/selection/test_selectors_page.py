"""What docs/selectors.md says is tested is tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_exists(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_every_fault_of_the_public_code_has_a_test() -> None:
    rows = re.findall(r"^\| D(\d+) \|.*`[\w/]+\.py::\w+` \|$", PAGE, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 17))
