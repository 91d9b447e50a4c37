"""Budgets, pins and quotas through `select`, for every kind of selector."""

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.selection.rules import Quota, Rules
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs

N = 40
IDS = tuple(f"r{number:02d}" for number in range(N))


def inputs() -> SelectionInputs:
    pool = pl.DataFrame(
        {
            "record_id": IDS,
            "instruction": ["ab" * (number % 5 + 1) for number in range(N)],
            "input": [""] * N,
            "output": [f"answer {number}" for number in range(N)],
            "task": ["sums" if number % 4 else "words" for number in range(N)],
        }
    )
    utility = np.random.default_rng(0).random((N, N)).astype(np.float32)
    block = Block("self", IDS, IDS, as_columns(utility))
    return SelectionInputs("instruction_tuning", pool, lambda name, form: block)


@pytest.mark.parametrize("selector", ["delift", "random"])
class TestSelectorsThatRank:
    def test_pins_and_quotas(self, selector: str) -> None:
        rules = Rules(("r05",), ("r06", "r07"), (Quota.parse("task:0.4..0.6"),))
        ranking = select(inputs(), selector, 10, 0, {}, rules).ranking
        assert ranking[0] == "r05" and len(set(ranking)) == 10
        assert not {"r06", "r07"} & set(ranking)
        words = sum(int(record[1:]) % 4 == 0 for record in ranking)
        assert 4 <= words <= 6

    def test_tokens(self, selector: str) -> None:
        ranking = select(inputs(), selector, "30tokens", 0, {}).ranking
        costs = [-(-(2 * (int(r[1:]) % 5 + 1) + len(f"answer {int(r[1:])}")) // 4) for r in ranking]
        assert 0 < sum(costs) <= 30

    def test_what_cannot_be_kept_is_refused(self, selector: str) -> None:
        with pytest.raises(InputError, match="at most 2 records"):
            select(inputs(), selector, 10, 0, {}, Rules(quotas=(Quota.parse("task:..1"),)))


@pytest.mark.parametrize("optimizer", ["lazy", "naive", "blocked"])
def test_auto_stops_and_the_knee_is_kept(optimizer: str) -> None:
    found = select(inputs(), "delift", "auto:0.02", 0, {"optimizer": optimizer})
    assert found.gains is not None
    assert 1 < len(found.ranking) < N
    assert (found.gains >= 0.02 * found.gains[0]).all()
    assert 1 <= found.details["knee"] <= len(found.ranking)


@pytest.mark.parametrize(
    ("selector", "budget", "options", "sentence"),
    [
        ("full", "auto", {}, "full takes every record"),
        ("random", "auto", {}, "random has no gains"),
        ("delift", "9tokens", {"optimizer": "submodlib"}, "cannot obey constraints"),
    ],
)
def test_selectors_without_a_way_say_so(selector, budget, options, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        select(inputs(), selector, budget, 0, options)
