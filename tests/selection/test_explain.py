"""`delift explain` names a planted wrong record and the neighbours that disagree."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from delift_pipeline.cli.lineage import explanation_text
from delift_pipeline.cli.main import run
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.kernel.kernel import build_kernel, load_block
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.neighbours import embed, nearest, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import build_plan
from delift_pipeline.selection.diagnostics import add_diagnostics
from delift_pipeline.selection.run import select, selection_request, write_subset
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.explain import Explanation
from delift_pipeline.stages.suspects import suspects_of

ARM, VERSION, PRINT = "instruction_tuning.delift_trusted", "v1", "f" * 32
PLANTED = "r2"


class Reader:
    """Equal answers help; another answer to a like prompt hurts."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def column(self, demonstration: str, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        same = [self.answers[t] == self.answers[demonstration] for t in targets]
        distance = np.where(same, 0.1, 0.9).astype(np.float32)
        return distance**2, -distance

    def baseline(self, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        half = np.full(len(targets), 0.5, dtype=np.float32)
        return half**2, -half, np.ones(len(targets), dtype=np.int32)


@pytest.fixture
def chosen(home: Home, tmp_path: Path) -> Home:
    rows = [
        {"id": f"r{k}", "instruction": f"the code of cat number {k}", "output": "one"}
        for k in range(6)
    ]
    rows[2]["output"] = "nine"
    pool, held = tmp_path / "pool.jsonl", tmp_path / "held.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held.write_text(json.dumps({"instruction": "another", "output": "x"}) + "\n")
    ingest(home, pool, version=VERSION, heldout=held)
    frame = load_version(home, VERSION).pool
    near = nearest(embed(prompt_texts(frame)), 20)
    plan = build_plan(
        frame,
        None,
        None,
        self_pairs="neighbours",
        target_pairs=False,
        existing_pairs=False,
        neighbours=near,
    )
    answers = dict(frame.select("record_id", "output").iter_rows())
    build_kernel(home, VERSION, PRINT, Reader(answers), plan)
    inputs = SelectionInputs(
        "instruction_tuning", frame, lambda n, f: load_block(home, VERSION, PRINT, n, f)
    )
    selection = add_diagnostics(inputs, select(inputs, "delift_trusted", 3, 0, {}))
    request = selection_request("instruction_tuning", "delift_trusted", 3, 0, {})
    write_subset(
        home.subset(VERSION, ARM), selection, frame, request=request, parents={}, fingerprint=PRINT
    )
    return home


def explain(home: Home, record: str, *more: str) -> int:
    where = ["--version", VERSION, "--arm", ARM, "--home", str(home.root)]
    return run(["explain", *where, "--record", record, *more])


def test_the_planted_record_is_named_with_who_disagrees(chosen: Home, capsys) -> None:
    assert explain(chosen, PLANTED, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["record"]["output"] == "nine" and not found["selected"]
    evidence = found["evidence"]
    assert evidence["suspected"] and evidence["trust"] < 0.5
    assert len(evidence["neighbours"]) == 5
    for one in evidence["neighbours"]:
        assert one["disagrees"] and one["helps"] < 0 and one["helped"] < 0
        assert one["text"].endswith("-> one")
    assert explain(chosen, PLANTED) == 0
    shown = capsys.readouterr().out
    assert "SUSPECTED WRONG" in shown and "dropped; covered" in shown and "disagrees" in shown


def test_trust_that_has_no_ground_says_so() -> None:
    lone = {"trust": 1.0, "suspected": False, "agreement": -0.9, "relative": -0.3, "weight": 0.012}
    found = Explanation(
        VERSION, ARM, "r", {"text": "a -> b", "source_ids": ["r"]}, False,
        evidence={**lone, "neighbours": []},
    )  # fmt: skip
    assert explanation_text(found).endswith("too far to be believed (weight 0.012)")


def test_a_chosen_record_says_what_it_covers(chosen: Home, capsys) -> None:
    names = [f"r{k}" for k in range(6)]
    found = []
    for name in names:
        assert explain(chosen, name, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    picks = [one for one in found if one["selected"]]
    assert sorted(one["rank"] for one in picks) == [0, 1, 2]
    assert sum(len(one["covers"]) for one in picks) == 6
    assert all(0 <= one["self_share"] <= 1 for one in picks)
    first = next(one for one in picks if one["rank"] == 0)
    assert explain(chosen, first["record_id"][:12]) == 0
    assert "chosen at rank 0, gain" in capsys.readouterr().out


def test_a_report_names_the_tokens_that_change_and_keeps_them_for_every_arm(
    chosen: Home, tiny: ModelOptions, capsys
) -> None:
    dataset, arm = load_version(chosen, VERSION), load_arms().arm(ARM)
    (row,) = suspects_of(chosen, dataset, arm, tiny, PRINT, SilentProgress())
    assert row["text"].endswith("-> nine") and row["trust"] < 0.5 and not row["selected"]
    assert len(row["neighbours"]) == 3
    for near in row["neighbours"]:
        assert near["text"].endswith("-> one")
        assert near["tokens"][-1] == "</s>" and len(near["change"]) == len(near["tokens"]) == 2
    nowhere = ModelOptions(model="nowhere/at-all")
    assert suspects_of(chosen, dataset, arm, nowhere, PRINT, SilentProgress()) == [row]
    assert explain(chosen, PLANTED, "--json") == 0
    kept = json.loads(capsys.readouterr().out)["tokens"]
    assert [one["change"] for one in kept] == [near["change"] for near in row["neighbours"]]


def test_what_is_not_there_is_refused_in_one_line(chosen: Home, capsys) -> None:
    assert explain(chosen, "nobody") == 2
    assert capsys.readouterr().err.count("\n") == 1
    where = ["--version", VERSION, "--home", str(chosen.root), "--record", "r1"]
    assert run(["explain", *where, "--arm", "instruction_tuning.random"]) == 2
    assert "has no subset of instruction_tuning.random yet" in capsys.readouterr().err
