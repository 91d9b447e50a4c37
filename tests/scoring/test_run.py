"""Scoring a plan: only what is missing, never lost, never twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring import run as scoring_run
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.engines import NaiveEngine, engine_for
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import duration_text, pairs_per_second, stored_rate
from delift_pipeline.scoring.run import score_baseline, score_pairs
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from tests.scoring.tables import score_table

Made = Callable[..., pl.DataFrame]


def all_pairs(records: EncodedRecords) -> PairPlan:
    return PairPlan((PairBlock("self", records.ids, records.ids),))


def sparse_plan(records: EncodedRecords, each: int) -> PairPlan:
    rng, n = np.random.default_rng(0), len(records)
    lists = [np.sort(rng.choice(n, each, replace=False)) for _ in range(n)]
    indptr = np.arange(0, n * each + 1, each).astype(np.int64)
    block = PairBlock(
        "self", records.ids, records.ids, indptr, np.concatenate(lists).astype(np.int32)
    )
    return PairPlan((block,))


class Scorer:
    """A warm process that scores 40 made-up records on request (`child.py`)."""

    def __init__(self, model: Path, frame: Path) -> None:
        script = str(Path(__file__).with_name("child.py"))
        self.process = subprocess.Popen(
            [sys.executable, script, str(model), str(frame)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def start(self, store: Path, shard_seconds: float = 0.0) -> int:
        """Ask for work; returns the process id of the fork that does it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{store} {shard_seconds}\n")
        self.process.stdin.flush()
        return int(self.line())

    def ended(self) -> list[int]:
        """Exit status and, if it was not killed, pairs scored without and with demonstration."""
        return [int(number) for number in self.line().split()]


@pytest.fixture(scope="module")
def scorers(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory, made_up: Made):
    frame = tmp_path_factory.mktemp("scorers") / "records.arrow"
    made_up(40).write_ipc(frame)
    started = [Scorer(llama.folder, frame) for _ in range(2)]
    for scorer in started:
        assert scorer.line() == "ready\n"
    yield started
    for scorer in started:
        scorer.process.communicate()


def undisturbed(llama: LoadedModel, folder: Path, frame: pl.DataFrame) -> ScoreStore:
    records, store = llama.encoder.encode(frame), ScoreStore(folder)
    score_baseline(llama, store, records)
    score_pairs(llama, store, records, all_pairs(records))
    return store


def assert_same(found: ScoreStore, expected: ScoreStore, ids: tuple[str, ...]) -> None:
    for mine, theirs in zip(found.baseline(ids), expected.baseline(ids), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(found.read_block(ids, ids), expected.read_block(ids, ids), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_scores_in_the_store_are_those_of_the_naive_loop(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(9))
    table = score_table(llama, None, records)
    assert table.height == 9 + 81
    naive = NaiveEngine(llama.model)
    jobs = [Job(records.prefix(), np.arange(9))]
    jobs += [Job(records.prefix(j), np.arange(9)) for j in range(9)]
    truth = np.concatenate(
        [np.add.reduceat(s.logprobs, np.cumsum(s.lengths) - s.lengths)
         for s in naive.score(records, jobs)]
    )  # fmt: skip
    np.testing.assert_allclose(table["sum_logprob"].to_numpy(), truth, atol=1e-4)
    assert table["demonstration_id"].to_list()[8:10] == [None, records.ids[0]]
    np.testing.assert_array_equal(table["tokens"].to_numpy()[:9], records.answer_lengths)


def test_a_second_run_scores_nothing_and_needs_no_engine(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    records, store = llama.encoder.encode(made_up(12)), ScoreStore(tmp_path)
    assert score_baseline(llama, store, records).pairs_scored == 12
    first = score_pairs(llama, store, records, sparse_plan(records, 5), shard_seconds=0)
    assert (first.pairs_scored, first.pairs_reused, first.shards_written) == (60, 0, 12)
    again = ScoreStore(tmp_path)
    assert score_baseline(llama, again, records).pairs_scored == 0
    second = score_pairs(llama, again, records, sparse_plan(records, 5))
    assert (second.pairs_scored, second.pairs_reused, second.shards_before) == (0, 60, 13)
    assert second.engine == {}


@pytest.mark.parametrize("shard_seconds", [0.0, 0.02, 100.0])
def test_where_shards_end_does_not_matter(
    shard_seconds: float, llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    frame = made_up(20)
    records, store = llama.encoder.encode(frame), ScoreStore(tmp_path / "a")
    score_baseline(llama, store, records, shard_seconds=shard_seconds)
    score_pairs(llama, store, records, all_pairs(records), shard_seconds=shard_seconds)
    assert_same(store, undisturbed(llama, tmp_path / "b", frame), records.ids)


def test_a_plan_of_several_blocks_scores_a_shared_pair_once(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    records, store = llama.encoder.encode(made_up(12)), ScoreStore(tmp_path)
    pool, other = records.ids[:8], records.ids[6:]
    plan = PairPlan((PairBlock("self", pool, pool), PairBlock("target", other, pool)))
    report = score_pairs(llama, store, records, plan)
    assert report.pairs_scored == 8 * 12
    assert store.missing(plan).pairs == 0
    wider = PairPlan((PairBlock("self", records.ids, records.ids),))
    assert score_pairs(llama, store, records, wider).pairs_scored == 12 * 12 - 8 * 12


def test_a_new_version_scores_only_the_pairs_of_changed_records(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    n, changed = 40, 2
    first, store = made_up(n), ScoreStore(tmp_path / "store")
    records = llama.encoder.encode(first)
    score_pairs(llama, store, records, all_pairs(records))
    second = pl.concat([first[:-changed], made_up(changed, seed=5)])
    records = llama.encoder.encode(second)
    report = score_pairs(llama, store, records, all_pairs(records))
    assert report.pairs_scored == n * n - (n - changed) ** 2
    fresh = ScoreStore(tmp_path / "fresh")
    score_pairs(llama, fresh, records, all_pairs(records))
    mine = store.read_block(records.ids, records.ids)
    theirs = fresh.read_block(records.ids, records.ids)
    np.testing.assert_allclose(mine.sum_logprob, theirs.sum_logprob, atol=1e-4)
    np.testing.assert_allclose(mine.squared_distance, theirs.squared_distance, atol=1e-5)


def test_an_unscorable_record_is_left_out_of_every_pair_and_reported(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    frame = made_up(6)
    long = frame[2].with_columns(pl.lit("dog " * 400).alias("output"))
    frame = pl.concat([frame[:2], long, frame[3:]])
    records, store = llama.encoder.encode(frame), ScoreStore(tmp_path)
    every = tuple(frame["record_id"])
    plan = PairPlan((PairBlock("self", every, every),))
    assert list(records.unscorable) == [every[2]]
    alone = score_baseline(llama, store, records, record_ids=every)
    assert (alone.pairs_scored, alone.pairs_left_out) == (5, 1)
    report = score_pairs(llama, store, records, plan)
    assert (report.pairs_scored, report.pairs_left_out) == (25, 11)
    assert "tokens" in report.unscorable[every[2]]


def test_a_plan_with_an_unknown_record_fails_in_one_sentence(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(3))
    plan = PairPlan((PairBlock("self", (*records.ids, "f" * 32), records.ids),))
    with pytest.raises(DeliftError, match="the plan names"):
        score_pairs(llama, ScoreStore(tmp_path), records, plan)


def test_a_store_of_another_fingerprint_is_not_written_to(
    llama: LoadedModel, model_of: Callable[[str], LoadedModel], tmp_path: Path, made_up: Made
) -> None:
    store = ScoreStore(tmp_path)
    score_baseline(llama, store, llama.encoder.encode(made_up(3)))
    other = model_of("qwen2")
    with pytest.raises(DeliftError, match="holds scores of"):
        score_baseline(other, store, other.encoder.encode(made_up(3)))


def test_numbers_that_are_not_finite_are_never_stored(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    class Broken(NaiveEngine):
        def score(self, records: EncodedRecords, jobs: object) -> list[TokenScores]:
            found = super().score(records, jobs)  # pyright: ignore
            return [TokenScores(scores.logprobs * np.nan, scores.lengths) for scores in found]

    records, store = llama.encoder.encode(made_up(3)), ScoreStore(tmp_path)
    with pytest.raises(DeliftError, match="not finite"):
        score_baseline(llama, store, records, engine=Broken(llama.model))
    assert store.shards == []


def test_what_was_scored_before_an_error_is_kept(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    class Failing:
        name, settings = "failing", {"engine": "failing"}

        def __init__(self) -> None:
            self.calls, self.inner = 0, NaiveEngine(llama.model)

        def score(self, records: EncodedRecords, jobs: list[Job]) -> list[TokenScores]:
            self.calls += 1
            if self.calls > 3:
                raise DeliftError("the device is gone")
            return self.inner.score(records, jobs)

    records, store = llama.encoder.encode(made_up(6)), ScoreStore(tmp_path)
    with pytest.raises(DeliftError, match="gone"):
        score_pairs(llama, store, records, all_pairs(records), engine=Failing())  # pyright: ignore
    assert store.missing(all_pairs(records)).pairs == 36 - 18
    assert not list((tmp_path / "leases").glob("*.lease"))


@pytest.mark.parametrize(("most_pairs", "together"), [(36, 3), (5, 1), (1000, 8)])
def test_a_call_scores_no_more_pairs_than_an_interrupted_run_may_lose(
    llama: LoadedModel,
    tmp_path: Path,
    made_up: Made,
    monkeypatch: pytest.MonkeyPatch,
    most_pairs: int,
    together: int,
) -> None:
    records = llama.encoder.encode(made_up(12))
    calls: list[int] = []

    class Counting(TransformersEngine):
        def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
            calls.append(len(jobs))
            return super().score(records, jobs)

    monkeypatch.setattr(scoring_run, "CALL_PAIRS", most_pairs)
    engine = Counting(llama.model, in_flight=8)
    report = score_pairs(llama, ScoreStore(tmp_path), records, all_pairs(records), engine=engine)
    assert max(calls) == together and sum(calls) == 12
    assert report.pairs_scored == 144


def test_demonstrations_in_flight_end_in_the_same_bits_after_a_failure(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    frame = made_up(12)
    records = llama.encoder.encode(frame)
    whole, broken = ScoreStore(tmp_path / "whole"), ScoreStore(tmp_path / "broken")

    class Failing(TransformersEngine):
        calls = 0

        def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
            self.calls += 1
            if self.calls > 2:
                raise DeliftError("the device is gone")
            assert len(jobs) == 4
            return super().score(records, jobs)

    for store in (whole, broken):
        engine = (Failing if store is broken else TransformersEngine)(llama.model, in_flight=4)
        with contextlib.suppress(DeliftError):
            score_pairs(llama, store, records, all_pairs(records), engine=engine)
    assert broken.missing(all_pairs(records)).pairs == 4 * 12
    again = TransformersEngine(llama.model, in_flight=4)
    score_pairs(llama, broken, records, all_pairs(records), engine=again)
    mine, theirs = (store.read_block(records.ids, records.ids) for store in (broken, whole))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    one = ScoreStore(tmp_path / "one")
    score_pairs(llama, one, records, all_pairs(records))
    alone = one.read_block(records.ids, records.ids)
    np.testing.assert_allclose(mine.sum_logprob, alone.sum_logprob, atol=1e-4)


def kill_until_done(scorer: Scorer, store: Path, kills: int, seed: int) -> int:
    """Kill a run at random moments and let the last one end; how many kills came in time."""
    chance, hits = random.Random(seed), 0
    for _ in range(kills):
        child = scorer.start(store)
        time.sleep(chance.uniform(0.0, 0.15))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        hits += scorer.ended()[0] == signal.SIGKILL
    scorer.start(store)
    assert scorer.ended()[0] == 0
    return hits


def test_after_twenty_kills_nothing_is_lost_and_the_scores_are_the_same_bits(
    llama: LoadedModel, tmp_path: Path, made_up: Made, scorers: list[Scorer]
) -> None:
    assert kill_until_done(scorers[0], tmp_path / "killed", 20, seed=1) >= 3
    frame, store = made_up(40), ScoreStore(tmp_path / "killed")
    expected = undisturbed(llama, tmp_path / "whole", frame)
    assert store.verify() == []
    assert_same(store, expected, llama.encoder.encode(frame).ids)
    # Shards close after every demonstration here: none was scored twice.
    assert store.pair_count == 40 * 40


def test_two_processes_share_one_plan(
    llama: LoadedModel, tmp_path: Path, made_up: Made, scorers: list[Scorer]
) -> None:
    store = tmp_path / "shared"
    for scorer in scorers:
        scorer.start(store, 0.05)
    (status, alone, pairs), (other_status, other_alone, other_pairs) = (
        scorer.ended() for scorer in scorers
    )
    assert (status, other_status) == (0, 0)
    assert alone + other_alone == 40
    assert pairs + other_pairs == 40 * 40
    frame = made_up(40)
    expected = undisturbed(llama, tmp_path / "whole", frame)
    assert_same(ScoreStore(store), expected, llama.encoder.encode(frame).ids)


def test_the_rate_is_known_from_the_store_and_from_a_short_trial(
    llama: LoadedModel, tmp_path: Path, made_up: Made
) -> None:
    torch.set_num_threads(1)
    records, store = llama.encoder.encode(made_up(12)), ScoreStore(tmp_path)
    assert stored_rate(store) is None
    score_pairs(llama, store, records, all_pairs(records))
    assert (stored_rate(store) or 0) > 0
    assert pairs_per_second(engine_for(llama), records) > 0
    sentences = [duration_text(seconds) for seconds in (0.2, 90, 240, 8000, 400_000)]
    assert sentences == ["1 second", "90 seconds", "4 minutes", "2 hours", "5 days"]
