from pathlib import Path

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "a|b", ".hidden", "a..b", "x" * 65])
def test_version_names_outside_the_allow_list_are_refused(home: Home, name: str) -> None:
    with pytest.raises(InputError):
        home.dataset(name)


@pytest.mark.parametrize(
    "name", ["delift", "instruction_tuning", "instruction_tuning.", "other.delift", "continual.a/b"]
)
def test_arm_names_outside_the_allow_list_are_refused(home: Home, name: str) -> None:
    with pytest.raises(InputError):
        home.subset("v1", name)


def test_home_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DELIFT_HOME", str(tmp_path / "h"))
    assert Home.at().root == (tmp_path / "h").resolve()


def test_versions_lists_only_complete_ones(home: Home) -> None:
    (home.datasets / "half").mkdir(parents=True)
    (home.datasets / "whole").mkdir()
    killed = home.datasets / ".tmp-0123abcd-killed"
    killed.mkdir()
    (killed / "manifest.json").write_text("{}")
    (home.datasets / "whole" / "manifest.json").write_text("{}")
    assert home.versions() == ["whole"]
