"""A home made before opens, answers, runs, scores no pair, and moves its champion."""

from pathlib import Path
from typing import Any

import pytest

from tests.frozen import snapshot


@pytest.fixture
def run(delift: Any) -> snapshot.Run:
    """Runs a command in this process and returns its JSON."""
    return lambda *arguments: delift(*arguments, "--json").json


def test_its_archive_is_below_two_megabytes() -> None:
    assert (snapshot.FROZEN / "home.tar.xz").stat().st_size < 2e6


def test_every_command_answers_on_it_in_the_same_shape(run: snapshot.Run, tmp_path: Path) -> None:
    home = snapshot.unpack(tmp_path)
    assert snapshot.answers(run, home) == snapshot.read("answers")
    assert snapshot.views(home) == snapshot.read("catalogue")


def test_it_runs_scores_no_pair_and_moves_the_champion(run: snapshot.Run, tmp_path: Path) -> None:
    home = snapshot.unpack(tmp_path)
    frozen = snapshot.read("tracking")
    (model,) = frozen["before"]["models"]
    first = run("run", "--version", "v1", "--arm", snapshot.ADDED, "--home", home)
    second = run("run", "--version", "v2", "--home", home)
    assert first["pairs_scored"] == 0 and second["pairs_scored"] == 0
    compared = run(*snapshot.COMPARE, "--home", home)
    parts = {"first": first, "second": second, "compare": compared}
    assert {k: snapshot.shape_of(part) for k, part in parts.items()} == snapshot.read("run")
    tracked = snapshot.tracking(home)
    assert tracked == frozen["after"]
    assert frozen["before"]["models"][model]["aliases"]["champion"] == "instruction_tuning.random"
    assert tracked["models"][model]["aliases"]["champion"] == snapshot.ADDED
    assert snapshot.materialisations(home) == snapshot.read("materialisations")
    assert snapshot.files(home) == snapshot.read("files")
