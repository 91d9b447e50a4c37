"""`delift select` and the graph choose the same records, in the same order, with the same gains."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.registry import SELECTORS, needs_of
from delift_pipeline.stages.arms import Arms, read_arms
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.score import PARTS, score_version
from delift_pipeline.stages.subset import make_subset

THINGS: Sequence[str] = "red blue green grey pink gold teal plum rust lime navy sand".split()
CODES = "one two three four five six".split()
LESS = {"rank": 2, "alpha": 4, "dims": 512, "epochs": 1}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "delift": [{}, {"pairs": "neighbours"}],
    "delift_trusted": [{"embedder": name} for name in ("tfidf", "minilm", "model")],
    "delift_se": [{"embedder": name} for name in ("tfidf", "minilm", "model")],
    "deft_ucs": [{"embedder": name} for name in ("tfidf", "minilm")],
    "less": [LESS],
}
STAGES = {"instruction_tuning": "first", "task_specific": "first", "continual": "second"}


def near_pairs_differ(stage: Any, selector: str, options: dict[str, Any]) -> bool:
    """A file has near pairs among its new records, and a version has those of its whole pool."""
    needs = needs_of(selector, stage, options)
    near_pairs_only = needs.self_pairs == "neighbours" and not needs.existing_records
    return stage == "continual" and near_pairs_only


ASKED = [
    (stage, selector, number, options)
    for stage in STAGES
    for selector in SELECTORS
    for number, options in enumerate(OPTIONS.get(selector, [{}]))
    if not near_pairs_differ(stage, selector, options)
]
ARMS_FILE = "arms.yaml"


@dataclass(frozen=True)
class Data:
    """A home with two versions of a dataset, and the files they were made of.

    Attributes:
        home: The home; both versions are planned, scored and have their kernels.
        arms: One arm for each case.
        files: The pool of each version, and the target set.
    """

    home: Home
    arms: Arms
    files: dict[str, Path]


def arm_name(stage: str, selector: str, number: int) -> str:
    return f"{stage}.{selector}-v{number}"


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """One record for each pair of things; the answer follows from both."""
    rows = [
        {
            "id": f"{a}-{b}",
            "instruction": f"say the code of {a}",
            "input": b,
            "output": " ".join(CODES[(THINGS.index(a) + k * THINGS.index(b)) % 6] for k in (1, 2)),
            "task": a,
        }
        for a, b in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_arms(home: Home) -> Arms:
    arms = {
        arm_name(stage, selector, number): {
            "options": options,
            "budget": "full" if selector == "full" else 7,
            "training": {"preset": "demo", "steps": 2},
            "evaluation": {"metrics": ["answer_loss"]},
        }
        for stage, selector, number, options in ASKED
    }
    home.root.mkdir(parents=True, exist_ok=True)
    home.arms_file.write_text(json.dumps({"arms": arms}), encoding="utf-8")
    return read_arms(home.arms_file.read_text(encoding="utf-8"), ARMS_FILE)


def write_files(folder: Path) -> dict[str, Path]:
    pairs = [(a, b) for a in THINGS[:6] for b in THINGS[:5] if a != b]
    later = [(a, b) for a in THINGS[6:8] for b in THINGS[2:9] if a != b]
    return {
        "first": write(folder / "first.jsonl", pairs),
        "second": write(folder / "second.jsonl", [*later, *pairs]),
        "target": write(folder / "target.jsonl", [(a, "sand") for a in THINGS[:4]]),
        "heldout": write(folder / "heldout.jsonl", [(a, "navy") for a in THINGS[:4]]),
    }


def ingest_both(home: Home, files: dict[str, Path], model: str) -> None:
    heldout = files["heldout"]
    about: dict[str, Any] = {"model": model, "dataset": "codes", "heldout": heldout}
    ingest(home, files["first"], version="first", target=files["target"], **about)
    ingest(home, files["second"], version="second", parents=["first"], existing="pool", **about)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny: ModelOptions) -> Data:
    folder = tmp_path_factory.mktemp("one")
    home, files = Home.at(folder / "home"), write_files(folder)
    arms = write_arms(home)
    ingest_both(home, files, tiny.model)
    for version in ("first", "second"):
        plan_pairs(home, version, arms)
        for part in PARTS:
            score_version(home, version, part, tiny, SilentProgress())
        make_kernel(home, version, tiny)
    return Data(home, arms, files)


def selected(
    delift: Callable[..., Any], home: Home, data: Data, case: tuple[Any, ...], model: str
) -> list[tuple[str, float | None]]:
    """Record ids and gains that `delift select` writes, in order."""
    stage, selector, _, options = case
    out, why = home.root.parent / "chosen.jsonl", home.root.parent / "why.jsonl"
    given = {"task_specific": ["--target", data.files["target"]]}.get(stage, [])
    given += ["--existing", data.files["first"]] if stage == "continual" else []
    for name, value in options.items():
        given += ["--option", f"{name}={value}"]
    given += ["--budget", "full" if selector == "full" else 7, "--selector", selector]
    where = ("--out", out, "--why", why, "--home", home.root, "--device", "cpu")
    answer = delift("select", data.files[STAGES[stage]], "--model", model, *given, *where)
    assert answer.status == 0, answer.err
    rows = [json.loads(line) for line in why.read_text(encoding="utf-8").splitlines()]
    chosen = [(row["record_id"], row["gain"]) for row in rows if "rank" in row]
    ids = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert ids == [row["source_id"] for row in rows if "rank" in row]
    return chosen


def stored(home: Home, version: str, arm: str) -> list[tuple[str, float | None]]:
    """Record ids and gains of an arm's subset, in order."""
    subset = pl.read_parquet(home.subset(version, arm) / "subset.parquet").sort("rank")
    return list(subset.select("record_id", "gain").iter_rows())


def assert_same(
    found: list[tuple[str, float | None]], expected: list[tuple[str, float | None]]
) -> None:
    assert [record for record, _ in found] == [record for record, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours == theirs or ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("case", ASKED, ids=lambda case: arm_name(*case[:3]))
def test_a_file_and_a_version_of_it_give_the_same_picks(
    data: Data,
    delift: Callable[..., Any],
    tiny: ModelOptions,
    chat_folder: Path,
    case: tuple[Any, ...],
) -> None:
    stage, selector, number, _ = case
    name = arm_name(stage, selector, number)
    # The vocabulary of the tiny model has no ratings.
    model = tiny.model_copy(update={"model": str(chat_folder)}) if selector == "selectit" else tiny
    make_subset(data.home, STAGES[stage], data.arms.arm(name), model)
    expected = stored(data.home, STAGES[stage], name)
    assert len(expected) == {"initial": 0, "full": len(expected)}.get(selector, 7)
    assert_same(selected(delift, data.home, data, case, model.model), expected)


@pytest.mark.slow
def test_a_run_of_the_graph_and_a_file_scored_anew_give_the_same_picks(
    delift: Callable[..., Any], tiny: ModelOptions, tmp_path: Path
) -> None:
    home, files = Home.at(tmp_path / "graph"), write_files(tmp_path)
    arms = write_arms(home)
    ingest_both(home, files, tiny.model)
    cases = [
        ("instruction_tuning", "delift_trusted", 0, OPTIONS["delift_trusted"][0]),
        ("task_specific", "delift", 0, {}),
        ("continual", "delift_trusted", 0, OPTIONS["delift_trusted"][0]),
    ]
    for case in cases:
        stage, selector, number, _ = case
        name = arm_name(stage, selector, number)
        ran = delift("run", "--version", STAGES[stage], "--arm", name, "--home", home.root)
        assert ran.status == 0, ran.err
        fresh = Home.at(tmp_path / name / "home")
        fresh.root.mkdir(parents=True)
        found = selected(delift, fresh, Data(home, arms, files), case, tiny.model)
        assert found
        assert_same(found, stored(home, STAGES[stage], name))
