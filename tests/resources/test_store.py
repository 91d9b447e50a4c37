"""The home and its arms as resources."""

from pathlib import Path

import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.stages.arms import load_arms
from resources import EmbedderResource, StoreResource


def test_home_is_the_one_named_else_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIFT_HOME", str(tmp_path / "environment"))
    assert StoreResource().open().root == tmp_path / "environment"
    assert StoreResource(home=str(tmp_path / "named")).open().root == tmp_path / "named"


def test_arms_are_the_homes_own(home: Home) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text("arms: {continual.full: {training: {steps: 1}}}\n")
    assert StoreResource(home=str(home.root)).arms().names == ["continual.full"]


def test_embedder_replaces_that_of_the_plan_where_one_is_named(home: Home) -> None:
    arms = load_arms(home)
    assert EmbedderResource().apply_to(arms) is arms
    named = EmbedderResource(name="minilm").apply_to(arms)
    assert named.plan.embedder == "minilm"
    assert named.arms == arms.arms
