"""A file and a version of the same records have the same near pairs, whatever a selector embeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairPlan, plan_hash, read_plan
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.plan import plan_pairs


class PlannedError(DeliftError):
    """Ends a selection once its pairs are planned."""


def pairs_of_file(
    home: Home, file: Path, model: ModelOptions, option: str, monkeypatch: pytest.MonkeyPatch
) -> PairPlan:
    """The pairs that `delift select` would score."""
    from delift_pipeline.cli import main

    planned: list[Any] = []

    def stop(home: Home, version: str, *_: Any, **__: Any) -> None:
        planned.append(read_plan(home.plan(version)))
        raise PlannedError

    monkeypatch.setattr("delift_pipeline.stages.select_file.score_version", stop)
    asked = ("--budget", "3", "--home", str(home.root), "--model", model.model)
    assert main.run(["select", str(file), *asked, "--option", option]) == 1
    return planned[0]


@pytest.mark.parametrize("embedder", ["tfidf", "minilm", "model"])
@pytest.mark.parametrize("plan", ["{}", "{neighbours: 3}"])
def test_near_pairs_of_a_file_are_those_of_the_graph(
    embedder: str,
    plan: str,
    home: Home,
    tiny: ModelOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    things = "red blue green grey pink gold teal plum rust lime navy sand".split()
    rows = [
        {"instruction": f"say the code of {a} {b}", "output": "one two"}
        for a, b in zip(things * 3, sorted(things * 3), strict=True)
    ]
    pool, held = tmp_path / "pool.jsonl", tmp_path / "held.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps({"instruction": "say", "output": "six"}))
    home.root.mkdir()
    home.arms_file.write_text(
        f"plan: {plan}\ndefaults: {{training: {{preset: demo, steps: 1}}}}\n"
        "arms:\n  instruction_tuning.delift_trusted: "
        f"{{options: {{embedder: {embedder}}}}}\n"
    )
    ingest(home, pool, version="v1", heldout=held)
    plan_pairs(home, "v1", load_arms(home))
    found = pairs_of_file(home, pool, tiny, f"embedder={embedder}", monkeypatch)
    assert plan_hash(found) == plan_hash(read_plan(home.plan("v1")))
