"""What docs/selectors.md says: its tables of options, and that what it calls tested is tested."""

import re
from pathlib import Path

import pytest

from delift_pipeline.selection.registry import SELECTORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_exists(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_option_is_listed_with_its_default(name: str) -> None:
    fields = SELECTORS[name].options_model.model_fields
    assert f"| `{name}` |" in PAGE
    _, _, section = PAGE.partition(f"\n### `{name}`\n")
    listed = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section.split("\n#")[0], re.MULTILINE))
    assert list(listed) == list(fields)
    for option, shown in listed.items():
        default = fields[option].default
        if isinstance(default, str):
            assert shown == f"`{default}`"
        elif isinstance(default, int | float):
            assert float(shown) == default


def test_every_fault_of_the_public_code_has_a_test() -> None:
    rows = re.findall(r"^\| D(\d+) \|.*`[\w/]+\.py::\w+` \|$", PAGE, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 17))
