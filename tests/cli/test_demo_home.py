"""Where `delift demo` writes."""

from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.demo import pools


@pytest.mark.parametrize("option", [(), ("--home", "elsewhere")])
def test_the_demo_writes_to_a_folder_of_its_own_whatever_delift_home_says(
    delift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    used: list[Home] = []

    def stop(home: Home) -> None:
        used.append(home)
        raise DeliftError("far enough")

    monkeypatch.setattr(pools, "prepare_demo", stop)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELIFT_HOME", str(tmp_path / "mine"))
    answer = delift("demo", *option)
    expected = tmp_path / (option[1] if option else "delift_demo")
    assert [home.root for home in used] == [expected]
    assert str(expected) in answer.err
    assert not (tmp_path / "mine").exists()
