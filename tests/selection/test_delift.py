"""The paper's selector on blocks with known utilities."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.selection.options import Stage, objective_at
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.selectors import delift

IDS = tuple("abcdef")
RNG = np.random.default_rng(11)
# Signed utilities with a strong diagonal, as scores give them.
SELF = RNG.uniform(-0.4, 0.6, (6, 6)).astype(np.float32) + np.eye(6, dtype=np.float32)
TARGET = RNG.uniform(-0.4, 0.6, (3, 6)).astype(np.float32)
EXISTING = RNG.uniform(-0.4, 0.6, (6, 2)).astype(np.float32)
REPLAY = RNG.uniform(-0.4, 0.6, (4, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)
OLD = tuple("wxyz")


def pool(ids: tuple[str, ...] = IDS) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "record_id": ids,
            "instruction": [f"say {record}" for record in ids],
            "input": [""] * len(ids),
            "output": list(ids),
            "source_ids": [[f"s-{record}"] for record in ids],
        }
    )


class Blocks:
    """Loads the blocks above and remembers what was asked for."""

    def __init__(
        self, left_out: str = "", thin: bool = False, changed: dict[str, np.ndarray] | None = None
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        self.left_out, self.thin = frozenset(left_out), thin
        self.changed: dict[str, np.ndarray] = changed or {}

    def __call__(self, name: str, form: str) -> Block:
        self.asked.append((name, form))
        values = {"self": SELF, "neighbours": SELF, "target": TARGET, "existing": EXISTING}
        matrix = (values | {"replay": REPLAY} | self.changed)[name]
        rows = {"target": tuple("tuv"), "replay": OLD}.get(name, IDS)
        columns = {"existing": tuple("xy"), "replay": OLD}.get(name, IDS)
        keep_rows = [i for i, r in enumerate(rows) if r not in self.left_out]
        keep_columns = [j for j, c in enumerate(columns) if c not in self.left_out]
        part = matrix[np.ix_(keep_rows, keep_columns)]
        return Block(
            name,
            tuple(rows[i] for i in keep_rows),
            tuple(columns[j] for j in keep_columns),
            as_columns(sparse.csc_matrix(part) if self.thin else part),
            f"hash of {name}",
            self.left_out,
        )


def run(
    stage: Stage,
    budget: float | int | str = 0.5,
    blocks: Blocks | None = None,
    ids=IDS,
    **options: Any,
) -> Selection:
    existing = tuple("xy") if stage == "continual" else ()
    inputs = SelectionInputs(stage, pool(ids), blocks or Blocks(), existing)
    return select(inputs, "delift", budget, 0, options)


def masked(kernel: np.ndarray) -> np.ndarray:
    kernel = kernel.copy()
    np.fill_diagonal(kernel, 0)
    return kernel


def greedy(value, count: int) -> list[int]:
    """Greedy on a set function by its definition."""
    chosen: list[int] = []
    for _ in range(count):
        left = [j for j in range(6) if j not in chosen]
        chosen.append(max(left, key=lambda j: (value([*chosen, j]), -j)))
    return chosen


CLIPPED, RELEVANT, HELD = (np.maximum(k, 0).astype(float) for k in (masked(SELF), TARGET, EXISTING))
VALUES = {
    "instruction_tuning": lambda a: CLIPPED[:, a].max(1).sum(),
    "task_specific": lambda a: CLIPPED[:, a].max(1).sum() + 2 * RELEVANT[:, a].max(0).sum(),
    "continual": lambda a: np.maximum(CLIPPED[:, a].max(1) - 0.5 * HELD.max(1), 0).sum(),
}


@pytest.mark.parametrize("stage", ["instruction_tuning", "task_specific", "continual"])
@pytest.mark.parametrize("optimizer", ["lazy", "naive", "submodlib"])
@pytest.mark.parametrize("thin", [False, True])
def test_each_stage_maximises_its_own_objective(stage: Stage, optimizer: str, thin: bool) -> None:
    found = run(stage, 3, Blocks(thin=thin), eta=2.0, nu=0.5, optimizer=optimizer)
    wanted = greedy(VALUES[stage], 3)
    assert found.ranking == tuple(IDS[j] for j in wanted)
    assert found.value == pytest.approx(VALUES[stage](wanted), rel=1e-6)
    assert found.gains is not None and found.gains.sum() == pytest.approx(found.value, rel=1e-6)
    assert found.value is not None and found.value_random is not None
    assert 0 < found.value_random <= found.value


def test_only_the_blocks_that_are_needed_are_read() -> None:
    read = {
        ("instruction_tuning", None): ["self"],
        ("task_specific", None): ["self", "target"],
        ("task_specific", "fl"): ["self"],
        ("task_specific", "fl2mi"): ["target"],
        ("continual", None): ["self", "existing"],
    }
    for (stage, objective), names in read.items():
        blocks = Blocks()
        found = run(stage, blocks=blocks, objective=objective, utility="kl_mean")
        assert blocks.asked == [(name, "kl_mean") for name in names]
        assert found.blocks == {name: f"hash of {name}" for name in names}
    blocks = Blocks(thin=True)
    assert run("continual", blocks=blocks, pairs="neighbours").ranking
    assert [name for name, _ in blocks.asked] == ["neighbours", "existing"]


@pytest.mark.parametrize("objective", ["fl1mi", "fl2mi"])
def test_the_other_target_objectives_by_name(objective: str) -> None:
    found, checked = (
        run("task_specific", 3, objective=objective, optimizer=o) for o in ("lazy", "submodlib")
    )
    assert found.objective == objective
    assert found.value == pytest.approx(checked.value, rel=1e-6)


def test_the_diagonal_is_kept_on_request() -> None:
    found = run("instruction_tuning", 1, diagonal="keep")
    assert found.value == pytest.approx(np.maximum(SELF, 0).sum(0).max(), rel=1e-6)
    assert found.value > run("instruction_tuning", 1).value  # pyright: ignore[reportOperatorIssue]


def test_min_max_is_one_map_for_all_blocks() -> None:
    found = run("continual", 3, scaling="min_max")
    others = SELF[~np.eye(6, dtype=bool)]
    low, high = min(others.min(), EXISTING.min()), max(others.max(), EXISTING.max())
    scale = found.details["scaling"]
    assert (scale["low"], scale["high"]) == pytest.approx((low, high))
    own, held = masked((SELF - low) / (high - low)), (EXISTING - low) / (high - low)

    def value(a: list[int]) -> float:
        return float(np.maximum(own[:, a].max(1) - held.max(1), 0).sum())

    assert found.value == pytest.approx(value([IDS.index(r) for r in found.ranking]), rel=1e-5)


def test_existing_and_target_blocks_are_never_masked() -> None:
    blocks = Blocks(changed={"existing": np.full((6, 2), 0.5, dtype=np.float32)})
    inputs = SelectionInputs("continual", pool(), blocks, ("x", "y"))
    found = select(inputs, "delift", 6, 0, {})
    wanted = np.maximum(CLIPPED.max(1) - 0.5, 0).sum()
    assert found.value == pytest.approx(wanted, rel=1e-5)


def test_only_this_arms_existing_records_count() -> None:
    inputs = SelectionInputs("continual", pool(), Blocks(), ("y",))
    found = select(inputs, "delift", 6, 0, {})
    wanted = np.maximum(CLIPPED.max(1) - HELD[:, 1], 0).sum()
    assert found.value == pytest.approx(wanted, rel=1e-5)


def replaying(budget: float | int | str, order: tuple[str, ...] = OLD, **options: Any) -> Selection:
    held = np.zeros((6, 4), dtype=np.float32)
    held[:, 1:3] = EXISTING

    def load(name: str, form: str) -> Block:
        if name != "existing":
            return Blocks()(name, form)
        return Block("existing", IDS, OLD, as_columns(held), "hash of existing")

    inputs = SelectionInputs("continual", pool(), load, order, existing_records=pool(order))
    return select(inputs, "delift", budget, 0, options)


@pytest.mark.parametrize("optimizer", ["lazy", "naive", "submodlib"])
def test_replay_takes_its_share_from_what_covers_the_existing_records(optimizer: str) -> None:
    found = replaying(5, replay=0.4, nu=0.5, optimizer=optimizer)
    assert [record in OLD for record in found.ranking] == [False, True, False, True, False]
    assert [r for r in found.ranking if r in IDS] == [
        IDS[j] for j in greedy(VALUES["continual"], 3)
    ]
    old = np.maximum(REPLAY, 0) * (1 - np.eye(4))
    first = max(range(4), key=lambda j: old[:, j].sum())
    second = max(set(range(4)) - {first}, key=lambda j: old[:, [first, j]].max(1).sum())
    assert [r for r in found.ranking if r in OLD] == [OLD[first], OLD[second]]
    assert found.gains is not None
    assert np.isnan(found.gains).tolist() == [record in OLD for record in found.ranking]
    assert found.value == pytest.approx(np.nansum(found.gains), rel=1e-6)
    assert found.replayed is not None
    assert set(found.replayed["record_id"]) == {OLD[first], OLD[second]}
    assert found.details["replayed"] == 2 and "2 of the picks are replayed" in found.notes[0]
    assert found.blocks["replay"] == "hash of replay"


def test_every_prefix_holds_the_share_of_replay_and_the_order_of_the_files_is_nothing() -> None:
    whole = replaying("full", replay=0.4)
    for budget in range(1, len(whole.ranking) + 1):
        assert replaying(budget, replay=0.4).ranking == whole.ranking[:budget]
    assert replaying("full", OLD[::-1], replay=0.4).ranking == whole.ranking


def test_without_replay_no_pair_of_existing_records_is_read() -> None:
    blocks = Blocks()
    found = run("continual", 3, blocks)
    assert {name for name, _ in blocks.asked} == {"self", "existing"}
    assert found.replayed is None and "replayed" not in found.details


def test_a_budget_in_tokens_cannot_be_shared_with_replay() -> None:
    with pytest.raises(InputError, match="set replay to 0"):
        replaying("auto", replay=0.4)
    assert replaying("auto", replay=0).replayed is None


def test_the_continual_pool_may_be_part_of_the_block() -> None:
    found = run("continual", "full", ids=("f", "b", "d"))
    assert sorted(found.ranking) == ["b", "d", "f"]
    rows = [5, 1, 3]
    own = np.maximum(CLIPPED[np.ix_(rows, rows)].max(1) - HELD[rows].max(1), 0).sum()
    assert found.value == pytest.approx(own, rel=1e-5)


def test_every_record_says_who_covers_it() -> None:
    found = run("instruction_tuning", 2)
    picks = [IDS.index(record) for record in found.ranking]
    best = CLIPPED[:, picks].max(1)
    owner = {
        IDS[i]: found.ranking[int(CLIPPED[i, picks].argmax())] for i in range(6) if best[i] > 0
    }
    assert found.reasons.covered_by == owner
    for record, covers in zip(found.ranking, found.reasons.covers, strict=True):
        assert covers == tuple(t for t in IDS if owner.get(t) == record)
    assert found.reasons.coverage == pytest.approx({t: best[IDS.index(t)] for t in owner})


def test_unscorable_records_count_for_the_budget_and_are_not_ranked() -> None:
    found = run("instruction_tuning", 0.5, Blocks(left_out="bz"))
    assert len(found.ranking) == 3 and "b" not in found.ranking
    assert found.notes == ("1 records have no scores and cannot be ranked by delift",)
    found = run("instruction_tuning", "full", Blocks(left_out="b"))
    assert len(found.ranking) == 5
    assert found.notes[1] == "the ranking has 5 records, fewer than the 6 of the budget"
    with pytest.raises(DeliftError, match="no record of the pool has scores"):
        run("instruction_tuning", "full", Blocks(left_out="abcdef"))


def test_a_kernel_of_other_records_is_not_used() -> None:
    with pytest.raises(DeliftError, match="block self lacks 1 of 7 targets"):
        run("instruction_tuning", 2, ids=(*IDS, "g"))


@pytest.mark.parametrize("optimizer", ["lazy", "naive", "stochastic"])
@pytest.mark.parametrize("stage", ["instruction_tuning", "task_specific", "continual"])
def test_smaller_budgets_are_prefixes_and_order_of_the_file_is_nothing(stage, optimizer) -> None:
    whole = run(stage, "full", optimizer=optimizer)
    for budget in range(1, 7):
        assert run(stage, budget, optimizer=optimizer).ranking == whole.ranking[:budget]
    assert run(stage, "full", ids=IDS[::-1], optimizer=optimizer).ranking == whole.ranking


def test_useless_records_come_last_in_order_of_record_id() -> None:
    useless = np.full((6, 6), -0.1, dtype=np.float32)
    useless[0, 5] = 0.5
    found = run("instruction_tuning", "full", Blocks(changed={"self": useless}))
    assert found.ranking == ("f", "a", "b", "c", "d", "e")


def test_copies_of_a_record_are_masked_like_itself() -> None:
    frame = pool().with_columns(
        instruction=pl.Series(["same", "same", *"cdef"]), output=pl.Series(["o", "o", *"cdef"])
    )
    copies = np.zeros((6, 6), dtype=np.float32)
    copies[0, 1] = copies[1, 0] = 0.9
    copies[2, 3] = 0.1
    inputs = SelectionInputs("instruction_tuning", frame, Blocks(changed={"self": copies}))
    assert select(inputs, "delift", 1, 0, {}).ranking == ("d",)


@pytest.mark.parametrize(
    ("stage", "options", "needs"),
    [
        ("instruction_tuning", {}, Needs("all")),
        ("task_specific", {}, Needs("all", target_pairs=True)),
        ("task_specific", {"objective": "fl2mi"}, Needs("none", target_pairs=True)),
        ("continual", {"pairs": "neighbours"}, Needs("neighbours", existing_pairs=True)),
        ("continual", {"objective": "fl"}, Needs("all")),
    ],
)
def test_needs_are_known_before_anything_is_scored(stage: Stage, options, needs: Needs) -> None:
    assert needs_of("delift", stage, options) == needs


def test_objectives_of_another_stage_and_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="flmi belongs to the stage task_specific"):
        needs_of("delift", "continual", {"objective": "flmi"})
    with pytest.raises(InputError) as refused:
        needs_of("delift", "continual", {"eta": -1, "scalling": "clip", "optimizer": "best"})
    assert {fault.field for fault in refused.value.faults} == {"eta", "scalling", "optimizer"}
    assert objective_at("continual", None) == "flcg"


@pytest.mark.parametrize("thin", [False, True])
def test_kernels_too_large_for_memory_are_read_from_where_they_lie(monkeypatch, thin) -> None:
    in_memory = run("continual", "full", Blocks(thin=thin))
    monkeypatch.setattr(delift, "materialise", lambda matrix: matrix)
    read = run("continual", "full", Blocks(thin=thin))
    assert read.ranking == in_memory.ranking
    assert read.value == pytest.approx(in_memory.value, rel=1e-12)
