"""Trusted coverage against its definition, written out with loops."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.scoring.neighbours import embed, prompt_texts
from delift_pipeline.selection.embedding import record_texts, similarities
from delift_pipeline.selection.options import Stage, TrustedOptions
from delift_pipeline.selection.ranking import interleave, replay_schedule
from delift_pipeline.selection.registry import SELECTORS, needs_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.trust import (
    SUSPECTED_RIGHT,
    SUSPECTED_WRONG,
    estimate_wrong_share,
    evidence_of,
    trust_from_agreement,
    trust_from_both,
    trust_from_support,
)

RNG = np.random.default_rng(5)
WORDS = ("red", "green", "blue", "round", "flat", "sharp")
N, EXISTING = 14, 4
IDS = tuple(f"r{number:02d}" for number in range(N))
NEW, OLD = IDS[EXISTING:], IDS[:EXISTING]
U = RNG.uniform(-0.6, 0.6, (N, N)).astype(np.float32)
NEAR = RNG.random((N, N)) < 0.5
NEAR |= NEAR.T
np.fill_diagonal(NEAR, False)
TARGET = RNG.uniform(-0.4, 0.6, (3, N)).astype(np.float32)


def frame(ids: tuple[str, ...] = IDS) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    texts = {i: (" ".join(rng.choice(WORDS, 3)), " ".join(rng.choice(WORDS, 2))) for i in IDS}
    return pl.DataFrame(
        {
            "record_id": ids,
            "instruction": [texts[i][0] for i in ids],
            "input": ["" for _ in ids],
            "output": [texts[i][1] for i in ids],
            "source_ids": [[f"s-{i}"] for i in ids],
        }
    )


def block(name: str, form: str = "distance", left_out: str = "") -> Block:
    if name == "target":
        return Block("target", ("t0", "t1", "t2"), IDS, as_columns(TARGET), "target-hash")
    kept = [k for k, record in enumerate(IDS) if record != left_out]
    ids = tuple(IDS[k] for k in kept)
    near = sparse.csc_matrix(np.where(NEAR, U, 0)[np.ix_(kept, kept)])
    return Block("neighbours", ids, ids, as_columns(near), "near-hash", frozenset({left_out}))


def inputs(stage: Stage, order: tuple[str, ...] = IDS, load: Any = block) -> SelectionInputs:
    if stage != "continual":
        return SelectionInputs(stage, frame(order), load)
    new = tuple(record for record in order if record in NEW)
    return SelectionInputs(
        stage, frame(new), load, OLD, existing_records=frame(OLD), whole=frame(order)
    )


def run(stage: Stage, budget: float | int | str = 5, **options: Any) -> Selection:
    return select(inputs(stage), "delift_trusted", budget, 0, options)


def cosines(texts: list[str]) -> np.ndarray:
    vectors = embed(texts)
    return np.round(np.clip((vectors @ vectors.T).toarray(), 0, 1), 6)


def definition(floor: float = 0.05) -> dict[str, float]:
    """Trust by the formulas, loop by loop."""
    w = cosines(prompt_texts(frame())) ** 4 * NEAR
    t = np.zeros(N)
    for j in range(N):
        above = sum(w[i, j] * (U[i, j] + U[j, i]) for i in range(N))
        below = sum(w[i, j] * (abs(U[i, j]) + abs(U[j, i])) for i in range(N))
        t[j] = above / below if below else 0
    r = np.array([t[j] - (w[:, j] @ t / w[:, j].sum() if w[:, j].sum() else 0) for j in range(N)])
    c = np.minimum(1, np.maximum(0, 1 + 2 * np.minimum(r, 0)))
    c[w.sum(0) < floor] = 1
    return dict(zip(IDS, c.tolist(), strict=True))


def kernel(rows: tuple[str, ...], columns: tuple[str, ...]) -> np.ndarray:
    s, c = cosines(record_texts(frame())), definition()
    np.fill_diagonal(s, 1)
    part = s[np.ix_([IDS.index(i) for i in rows], [IDS.index(j) for j in columns])]
    return part * np.array([c[j] for j in columns])


def weights(rows: tuple[str, ...]) -> np.ndarray:
    return np.array([definition()[i] for i in rows])


def greedy(value: Any, n: int, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        left = [j for j in range(n) if j not in chosen]
        chosen.append(max(left, key=lambda j: (round(value([*chosen, j]), 9), -j)))
    return chosen


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.4, 100.0])
def test_trust_is_its_definition(floor: float) -> None:
    found = trust_from_agreement(block("neighbours"), frame(), floor=floor)
    assert found.by_id == pytest.approx(definition(floor), abs=1e-6)
    assert 0 <= min(found.trust) <= max(found.trust) <= 1
    if floor == 100:
        assert set(found.trust) == {1.0}
    else:
        assert min(found.trust) < 0.8


def test_instruction_tuning_is_trusted_coverage() -> None:
    k, c = kernel(IDS, IDS), weights(IDS)

    def value(a: list[int]) -> float:
        return float(c @ k[:, a].max(1))

    found, wanted = run("instruction_tuning", 5), greedy(value, N, 5)
    assert found.ranking == tuple(IDS[j] for j in wanted)
    assert found.value == pytest.approx(value(wanted), rel=1e-5)
    assert (found.objective, found.blocks) == ("trusted_fl", {"neighbours": "near-hash"})
    assert found.gains is not None and (np.diff(found.gains) <= 1e-9).all()
    assert found.value is not None and found.value_random is not None
    assert found.value_random < found.value


def test_task_specific_is_fl2mi_with_trust() -> None:
    k = np.maximum(TARGET, 0) * weights(IDS)

    def value(a: list[int]) -> float:
        return float(k[:, a].max(1).sum() + 2 * k[:, a].max(0).sum())

    found, wanted = run("task_specific", 4, eta=2), greedy(value, N, 4)
    assert found.ranking == tuple(IDS[j] for j in wanted)
    assert found.value == pytest.approx(value(wanted), rel=1e-5)
    assert found.blocks == {"neighbours": "near-hash", "target": "target-hash"}
    assert set(found.reasons.covered_by) <= {"t0", "t1", "t2"}


def test_continual_is_conditional_gain_and_replays_a_share() -> None:
    k, c = kernel(NEW, NEW), weights(NEW)
    held = kernel(NEW, OLD).max(1)

    def value(a: list[int]) -> float:
        return float(c @ np.maximum(k[:, a].max(1) - held, 0))

    old, old_c = kernel(OLD, OLD), weights(OLD)
    found = run("continual", 5)
    assert [record in OLD for record in found.ranking] == [False, False, True, False, False]
    new = [record for record in found.ranking if record in NEW]
    assert new == [NEW[j] for j in greedy(value, len(NEW), 4)]
    replay = greedy(lambda a: float(old_c @ old[:, a].max(1)), len(OLD), 1)
    assert found.ranking[2] == OLD[replay[0]]
    assert found.gains is not None and np.isnan(found.gains).tolist() == [
        record in OLD for record in found.ranking
    ]
    assert found.value == pytest.approx(np.nansum(found.gains))
    assert found.replayed is not None and found.replayed["record_id"].to_list() == [
        found.ranking[2]
    ]
    assert run("continual", 5, replay=0).ranking == tuple(
        NEW[j] for j in greedy(value, len(NEW), 5)
    )


def test_an_existing_record_that_is_in_no_pool_still_counts_and_may_be_replayed() -> None:
    own = tuple(record for record in IDS if record not in OLD[:2])
    given = SelectionInputs(
        "continual",
        frame(NEW),
        lambda name, form: block(name).restrict(own, own),
        OLD,
        existing_records=frame(OLD),
        whole=frame(own),
    )
    found = select(given, "delift_trusted", "full", 0, {"replay": 0.5})
    assert set(OLD) < set(found.ranking)
    assert found.trust is not None and found.trust.of(OLD[:2]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("stage", ["instruction_tuning", "task_specific", "continual"])
def test_prefixes_and_the_order_of_the_file(stage: Stage) -> None:
    whole = run(stage, "full")
    assert len(set(whole.ranking)) == len(whole.ranking)
    for budget in range(1, len(whole.ranking) + 1):
        assert run(stage, budget).ranking == whole.ranking[:budget]
    backwards = select(inputs(stage, IDS[::-1]), "delift_trusted", "full", 0, {})
    assert backwards.ranking == whole.ranking
    np.testing.assert_array_equal(backwards.gains, whole.gains)  # pyright: ignore


@pytest.mark.parametrize("stage", ["instruction_tuning", "continual"])
def test_the_sparse_kernel_with_all_neighbours_is_the_dense_one(stage: Stage) -> None:
    thin = run(stage, "full", dense_limit=0, coverage_neighbours=N)
    assert thin.ranking == run(stage, "full").ranking
    few = similarities(frame(), dense_limit=0, neighbours=2)
    assert few.matrix.diagonal().tolist() == [1.0] * N
    assert few.matrix.nnz < N * N and abs(few.matrix - few.matrix.T).max() == 0


def test_records_without_scores_are_not_ranked_and_a_note_says_so() -> None:
    given = inputs("instruction_tuning", load=lambda n, f: block(n, f, left_out="r03"))
    found = select(given, "delift_trusted", "full", 0, {})
    assert len(found.ranking) == N - 1 and "r03" not in found.ranking
    assert "1 records have no scores" in found.notes[0] and "fewer than the 14" in found.notes[1]
    with pytest.raises(DeliftError, match="lacks"):
        short = block("neighbours").restrict(IDS[1:], IDS[1:])
        select(inputs("instruction_tuning", load=lambda n, f: short), "delift_trusted", 2, 0, {})


def test_copies_do_not_vouch_for_each_other() -> None:
    ids, same = ("a", "b", "c"), ["say one", "say one", "say one"]
    records = pl.DataFrame(
        {"record_id": ids, "instruction": same, "input": [""] * 3, "output": ["x", "x", "y"]}
    )
    utility = np.array([[0, 0.9, -0.5], [0.9, 0, -0.5], [-0.5, -0.5, 0]], dtype=np.float32)
    found = trust_from_agreement(Block("neighbours", ids, ids, as_columns(utility)), records)
    assert found.agreement.tolist() == [-1, -1, -1] and found.weights[0, 1] == 0


def test_needs_and_options() -> None:
    assert needs_of("delift_trusted", "instruction_tuning", {}) == Needs("neighbours")
    assert needs_of("delift_trusted", "task_specific", {}) == Needs("neighbours", target_pairs=True)
    needs = needs_of("delift_trusted", "continual", {})
    assert needs == Needs("neighbours", existing_records=True) and needs.reads_existing
    assert needs.blocks == ("neighbours",)
    with pytest.raises(InputError) as refused:
        needs_of("delift_trusted", "continual", {"replay": 1.0, "floor": -1, "power": 3})
    assert {fault.field for fault in refused.value.faults} == {"replay", "floor", "power"}


def test_replay_is_spread_evenly_and_runs_out_gracefully() -> None:
    assert replay_schedule(72, 0.2, 1000, 1000).replay_count == 14
    assert replay_schedule(5, 0.2, 10, 10).replays == (False, False, True, False, False)
    assert replay_schedule(10, 0.5, 10, 2).replay_count == 2
    assert replay_schedule(10, 0.5, 3, 100).new_count == 3
    assert replay_schedule(4, 0, 10, 10).replay_count == 0
    assert interleave(replay_schedule(3, 0.5, 5, 5), "ab", "xy"[:2]) == ("x", "a", "y")


def test_embedding_similarity_has_the_papers_objectives() -> None:
    s = cosines(record_texts(frame()))
    np.fill_diagonal(s, 1)
    found = select(SelectionInputs("instruction_tuning", frame()), "delift_se", 4, 0, TFIDF)
    wanted = greedy(lambda a: float(s[:, a].max(1).sum()), N, 4)
    assert found.ranking == tuple(IDS[j] for j in wanted) and found.objective == "fl"
    new = [IDS.index(i) for i in NEW]
    own, held = s[np.ix_(new, new)], s[np.ix_(new, range(EXISTING))].max(1)
    found = select(inputs("continual"), "delift_se", 4, 0, TFIDF)
    wanted = greedy(lambda a: float(np.maximum(own[:, a].max(1) - held, 0).sum()), len(NEW), 4)
    assert found.ranking == tuple(NEW[j] for j in wanted)
    with pytest.raises(InputError, match="belongs to the stage continual"):
        needs_of("delift_se", "instruction_tuning", {"objective": "flcg"})


TFIDF = {"embedder": "tfidf"}


@pytest.mark.parametrize("objective", ["flmi", "fl1mi", "fl2mi"])
def test_embedding_similarity_to_a_target_set(objective: str) -> None:
    pool, target = frame(NEW), frame(OLD)
    given = SelectionInputs("task_specific", pool, target=target)
    options = {**TFIDF, "objective": objective, "eta": 2.0}
    found = select(given, "delift_se", 3, 0, options)
    s = cosines(record_texts(pl.concat([pool, target])))
    np.fill_diagonal(s, 1)
    own, to = s[: len(NEW), : len(NEW)], s[len(NEW) :, : len(NEW)]
    values = {
        "flmi": lambda a: own[:, a].max(1).sum() + 2 * to[:, a].max(0).sum(),
        "fl1mi": lambda a: np.minimum(own[:, a].max(1), 2 * to.max(0)).sum(),
        "fl2mi": lambda a: to[:, a].max(1).sum() + 2 * to[:, a].max(0).sum(),
    }
    assert found.ranking == tuple(NEW[j] for j in greedy(values[objective], len(NEW), 3))
    with pytest.raises(DeliftError, match="target set's records"):
        select(SelectionInputs("task_specific", pool), "delift_se", 3, 0, options)


def test_where_nothing_was_scored_there_is_no_trust_and_nothing_breaks() -> None:
    empty = replace(block("neighbours").restrict((), ()), unscorable=frozenset(IDS))
    assert trust_from_agreement(empty, frame()).by_id == {}
    with pytest.raises(DeliftError, match="no record of the pool has scores"):
        given = inputs("instruction_tuning", load=lambda n, f: empty)
        select(given, "delift_trusted", 2, 0, {})


SUPPORT = {record: 3.0 - 0.37 * k for k, record in enumerate(IDS)}


def support(records: Sequence[str]) -> np.ndarray:
    return np.array([SUPPORT.get(record, np.nan) for record in records])


def supported(scale: float, values: dict[str, float]) -> dict[str, float]:
    """The definition, with loops; every other prompt is among the 20 nearest."""
    near, trust = cosines(prompt_texts(frame())) ** 4, {}
    overall = sum(values.values()) / N
    for j, record in enumerate(IDS):
        total, weight = 0.05 * overall, 0.05
        for i, other in enumerate(IDS):
            if i != j:
                total, weight = total + near[i, j] * values[other], weight + near[i, j]
        mean, own = min(1, max(0, total / weight)), min(1, max(0, values[record] / scale))
        trust[record] = 1 - mean * (1 - own)
    return trust


def test_trust_from_support_is_its_definition() -> None:
    found = trust_from_support(frame(), support, scale=2.0)
    assert found.by_id == pytest.approx(supported(2.0, SUPPORT), abs=1e-6)
    assert min(found.trust) < 0.5 and max(found.trust) == 1
    evidence = evidence_of(found, IDS[-1])
    assert evidence is not None and evidence.agreement is None
    assert evidence.support == pytest.approx(SUPPORT[IDS[-1]]) and evidence.is_suspected
    near = cosines(prompt_texts(frame()))
    np.fill_diagonal(near, 0)
    best = sorted(near[:, N - 1], reverse=True)[: len(evidence.neighbours)]
    assert [one.similarity for one in evidence.neighbours] == pytest.approx(best, abs=1e-6)
    assert not any(one.disagrees for one in evidence.neighbours)


def test_where_near_prompts_have_no_support_a_record_keeps_its_trust() -> None:
    hard = trust_from_support(frame(), lambda ids: np.linspace(-0.01, 0.01, len(ids)))
    assert min(hard.trust) > 0.98


def test_records_without_support_have_no_trust_from_it() -> None:
    found = trust_from_support(frame(), lambda ids: np.where(np.arange(len(ids)) < 2, np.nan, 1))
    assert found.ids == IDS[2:]
    none = trust_from_support(frame(), lambda ids: np.full(len(ids), np.nan))
    assert none.ids == () and none.by_id == {}


def test_trust_from_both_is_the_product() -> None:
    agreement = trust_from_agreement(block("neighbours"), frame())
    alone = trust_from_support(frame(), support)
    both = trust_from_both(agreement, alone)
    product = {one: agreement.by_id[one] * alone.by_id[one] for one in IDS}
    assert both.by_id == pytest.approx(product)
    assert both.by_id != pytest.approx(agreement.by_id)
    part = trust_from_support(frame(IDS[:3]), support)
    kept = trust_from_both(agreement, part).by_id
    assert {one: kept[one] for one in IDS[3:]} == {one: agreement.by_id[one] for one in IDS[3:]}


def test_support_alone_reads_no_pairs_and_covers_prompts() -> None:
    def refuse(name: str, form: str = "distance") -> Block:
        raise AssertionError(f"the block {name} was read")

    read = replace(inputs("instruction_tuning", load=refuse), support=support)
    options = TrustedOptions(trust="support", covers="prompts")
    found = select(read, "delift_trusted", 5, 0, options)
    c = np.array([supported(2.5, SUPPORT)[one] for one in IDS])
    s = cosines(prompt_texts(frame()))
    np.fill_diagonal(s, 1)
    k = s * c
    wanted = greedy(lambda a: float(c @ k[:, a].max(1)), N, 5)
    assert found.ranking == tuple(IDS[j] for j in wanted)
    assert found.blocks == {}
    needs = SELECTORS["delift_trusted"].needs("instruction_tuning", options)
    assert needs.blocks == () and needs.support and needs.scores


def test_the_new_options_are_in_a_request_only_if_they_differ_from_their_defaults() -> None:
    new = {"trust", "covers", "scale"}
    assert not new & set(TrustedOptions().model_dump())
    assert new < set(TrustedOptions(trust="support", covers="prompts", scale=1.0).model_dump())


def test_the_estimate_solves_for_the_share_of_wrong_answers() -> None:
    for share in (0.0, 0.15, 1.0):
        seen = share * SUSPECTED_WRONG + (1 - share) * SUSPECTED_RIGHT
        trust = np.ones(2000)
        trust[: round(seen * 2000)] = 0
        assert estimate_wrong_share(trust) == pytest.approx(share, abs=1e-3)
    assert estimate_wrong_share(np.ones(4)) == 0 and estimate_wrong_share(np.zeros(4)) == 1
