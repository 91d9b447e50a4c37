"""Support in the graph: two passes a record, kept current, and read by selectors without pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.lineage.artifacts import direct_causes, find_artifact
from delift_pipeline.operations.cost import cost_of
from delift_pipeline.operations.forget import forget
from delift_pipeline.operations.gc import collect_garbage
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.shards import BASELINE, ShardDraft
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.support import support_of
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.ranking import rank_by_score
from delift_pipeline.selection.registry import SELECTORS
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.selectors.length import LengthSelector
from delift_pipeline.selection.token_changes import prompt_changes
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.score import Part, ScoreResult, score_version
from delift_pipeline.stages.subset import make_subset

COUNT = 8
WORDS = "red blue green grey pink gold teal plum".split()


class SupportedSelector(Selector):
    """The best supported records first."""

    name = "supported"
    options_model = LengthSelector.options_model
    traits = Traits()
    default_needs = Needs(support=True)

    def select(self, inputs: SelectionInputs, budget: int, seed: int, options: Any) -> Selection:
        """Rank the whole pool."""
        ids = tuple(inputs.pool["record_id"])
        return rank_by_score(self.name, inputs, ids, inputs.support(ids), budget)


@pytest.fixture(autouse=True)
def supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SELECTORS, "supported", SupportedSelector())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {"id": str(i), "instruction": f"say {word}", "input": "twice" * (i % 2), "output": word * 2}
        for i, word in enumerate(WORDS)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def planned(tmp_path: Path, file: Path, tiny: ModelOptions) -> Home:
    home = Home.at(tmp_path / "home")
    ingest(home, file, version="v1", model=tiny.model, dataset="d")
    plan_pairs(home, "v1", load_arms(home))
    return home


def score(home: Home, part: Part, model: ModelOptions) -> ScoreResult:
    return score_version(home, "v1", part, model, SilentProgress())


def report_of(result: ScoreResult) -> ScoreReport:
    assert result.report is not None
    return result.report


def arm() -> Arm:
    return Arm.model_construct(name="instruction_tuning.supported", budget=3, seed=0, options={})


def pool_size(result: ScoreResult) -> int:
    return len(list(result.plan.records()))


def test_the_baseline_of_a_version_takes_two_passes_a_record(
    planned: Home, tiny: ModelOptions
) -> None:
    first = score(planned, "baseline", tiny)
    n = pool_size(first)
    assert n > 4 and first.manifest.counts["wanted"] == report_of(first).pairs_scored == 2 * n
    assert np.isfinite(support_of(first.store, tuple(first.plan.records()))).all()
    again = score(planned, "baseline", tiny)
    assert again.reused and again.report is None
    assert again.manifest.content_hash == first.manifest.content_hash


def make_older(result: ScoreResult) -> None:
    """Leave what an earlier version of the program would have stored: baselines alone."""
    store, records = result.store, tuple(result.plan.records())
    squared, logprob, tokens = store.baseline(records)
    for shard in store.shards:
        if not shard.has_pairs:
            store.set_aside(shard.name)
    numbers, draft = store.ids.numbers(records), ShardDraft()
    order = np.argsort(numbers)
    draft.add(BASELINE, numbers[order], (squared[order], logprob[order] - 1), tokens[order])  # pyright: ignore
    store.write(draft, {})
    older = result.manifest.model_copy(update={"request": {}, "content_hash": "older"})
    older.write(result.folder)


def test_a_version_of_an_older_program_gets_its_support_and_nothing_else(
    planned: Home, tiny: ModelOptions
) -> None:
    first = score(planned, "baseline", tiny)
    score(planned, "in_context", tiny)
    make_kernel(planned, "v1", tiny)
    records = tuple(first.plan.records())
    support, before = support_of(first.store, records), first.store.baseline(records).sum_logprob
    make_older(first)
    with pytest.raises(InputError, match="no support"):
        make_subset(planned, "v1", arm(), tiny)
    assert cost_of(planned, "v1", [], tiny, measure=False).passes == 2 * len(records)
    assert report_of(score(planned, "baseline", tiny)).pairs_scored == 2 * len(records)
    assert score(planned, "in_context", tiny).report is None
    assert make_kernel(planned, "v1", tiny).reused
    assert cost_of(planned, "v1", [], tiny, measure=False).passes == 0
    store = ScoreStore(first.store.folder)
    np.testing.assert_array_equal(support_of(store, records), support)
    # The former values count on.
    np.testing.assert_array_equal(store.baseline(records).sum_logprob, before - 1)


def test_a_subset_that_read_support_is_made_again_when_support_changes(
    planned: Home, tiny: ModelOptions
) -> None:
    with pytest.raises(InputError, match="Materialise baseline_logprobs"):
        make_subset(planned, "v1", arm(), tiny)
    scored = score(planned, "baseline", tiny)
    made = make_subset(planned, "v1", arm(), tiny)
    assert made.manifest.parents["baseline:v1"] == scored.manifest.content_hash
    assert made.selection is not None
    pool = made.inputs.pool["record_id"].to_list()
    best = np.argsort(-support_of(scored.store, pool), kind="stable")[:3]
    assert list(made.selection.ranking) == [pool[place] for place in best]
    subset = find_artifact(planned, "subset:v1:instruction_tuning.supported")
    assert subset is not None
    states = {edge.parent: edge.state for edge in direct_causes(planned, subset)}
    assert states["baseline:v1"] == "as recorded"
    assert make_subset(planned, "v1", arm(), tiny).reused
    scored.manifest.model_copy(update={"content_hash": "other"}).write(scored.folder)
    assert not make_subset(planned, "v1", arm(), tiny).reused


def test_a_file_is_selected_by_support_without_a_pair(
    file: Path, tiny: ModelOptions, tmp_path: Path, delift: Callable[..., Any]
) -> None:
    home, out = Home.at(tmp_path / "home"), tmp_path / "out.jsonl"
    arguments = ("--model", tiny.model, "--device", "cpu", "--home", home.root, "--out", out)
    command = ("select", file, "--selector", "supported", "--budget", 3, *arguments, "--json")
    answer = delift(*command).json
    assert (answer["pairs_scored"], answer["pairs_reused"], answer["selected"]) == (0, 0, 3)
    (folder,) = (home.root / "scores").iterdir()
    store = ScoreStore(folder)
    assert store.pair_count == 0
    support = support_of(store, store.ids.names())
    assert np.isfinite(support).all() and len(support) == COUNT
    chosen = [json.loads(line)["output"] for line in out.read_text("utf-8").splitlines()]
    shards = len(store.shards)
    delift(*command)
    assert len(ScoreStore(folder).shards) == shards
    assert chosen == [json.loads(line)["output"] for line in out.read_text("utf-8").splitlines()]


def test_what_the_prompt_tells_about_each_token_sums_to_support(
    planned: Home, tiny: ModelOptions
) -> None:
    scored = score(planned, "baseline", tiny)
    reader = LanguageModel(tiny, planned)
    made = make_subset(planned, "v1", arm(), tiny)
    rows = {row["record_id"]: row for row in made.inputs.pool.to_dicts()}
    changes = prompt_changes(reader, rows)
    assert list(changes) == list(rows)
    for record, change in changes.items():
        assert change.record_id == record and len(change.tokens) == len(change.change)
        tokens = len(change.tokens)
        (support,) = support_of(scored.store, [record])
        assert sum(change.change[:-1]) / tokens**0.5 == pytest.approx(support, abs=1e-3)
    assert prompt_changes(reader, {}) == {}


def test_forgetting_a_record_and_collecting_garbage_leave_the_support_of_the_others(
    planned: Home, tiny: ModelOptions
) -> None:
    scored = score(planned, "baseline", tiny)
    made = make_subset(planned, "v1", arm(), tiny)
    gone, *others = made.inputs.pool["record_id"].to_list()
    found = forget(planned, [gone])
    assert "subset:v1:instruction_tuning.supported" in {one["name"] for one in found.artifacts}
    plan_pairs(planned, "v1", load_arms(planned))
    again = score(planned, "baseline", tiny)
    assert report_of(again).pairs_scored == 0
    assert again.manifest.content_hash != scored.manifest.content_hash
    assert not make_subset(planned, "v1", arm(), tiny).reused
    collect_garbage(planned, apply=True)
    assert np.isfinite(support_of(ScoreStore(scored.store.folder), others)).all()
