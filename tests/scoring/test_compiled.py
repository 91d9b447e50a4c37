"""Compiled loops against the operations that they stand for, and scores by either."""

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from delift_pipeline.scoring import compiled
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.naive import NaiveEngine
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from delift_pipeline.scoring.turning import Angles, Turn

Made = Callable[..., pl.DataFrame]
DTYPES = [torch.float32, torch.bfloat16]
MANY = compiled.THREADS + 1


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def turn_of(tokens: int, turned: int, dtype: torch.dtype) -> Turn:
    angle = random(40, turned // 2).repeat(1, 2)
    angles = Angles.of(angle.cos().to(dtype), angle.sin().to(dtype), heads=4)
    return Turn(angles, torch.arange(tokens) * 7 % 40)


def rotated(heads: torch.Tensor, turn: Turn, turned: int) -> torch.Tensor:
    """As the models' own code turns heads, in float64."""
    cos, sin = (part[turn.places][:, None].double() for part in (turn.angles.cos, turn.angles.sin))
    sin = torch.cat([-sin[..., : turned // 2], sin[..., turned // 2 :]], dim=-1)
    part, rest = heads[..., :turned].double(), heads[..., turned:].double()
    half = torch.cat([-part[..., turned // 2 :], part[..., : turned // 2]], dim=-1)
    return torch.cat([part * cos + half * sin, rest], dim=-1)


@pytest.mark.parametrize("count", [1, MANY])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("many", "turned"), [(2, 16), (6, 16), (4, 8)])
def test_heads_are_laid_out_by_head_and_cell_turned_as_models_turn_them(
    threads: Callable[[int], None], many: int, turned: int, dtype: torch.dtype, count: int
) -> None:
    threads(count)
    heads, spread = random(9, 2, 16, dtype=dtype), torch.tensor([0, 1, 2, 0, 3, 4, 5, 6, 7, 8])
    turn = turn_of(9, turned, dtype)
    for given, expected in ((None, heads.double()), (turn, rotated(heads, turn, turned))):
        found = compiled.laid_out(heads, spread, many, given)
        assert found.is_contiguous() and found.dtype == dtype
        expected = expected[spread].transpose(0, 1).repeat_interleave(many // 2, dim=0)
        bound = 1e-6 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(found.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_the_models_own_to_the_last_place(
    threads: Callable[[int], None], dtype: torch.dtype
) -> None:
    norm = LlamaRMSNorm(48).to(dtype).requires_grad_(False)
    norm.weight.copy_(random(48, seed=1))
    hidden, more = random(5, 48, dtype=dtype, seed=2), random(5, 48, dtype=dtype, seed=3)
    total = hidden + more
    alone, both = compiled.normed(norm, hidden.view(5, 1, 48)), hidden.clone()
    after = compiled.added_and_normed(norm, both, more)
    torch.testing.assert_close(both, total, atol=0, rtol=0)
    # A sum in another order rounds by a place now and then.
    place = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(alone, norm(hidden)[:, None], atol=0, rtol=place)
    torch.testing.assert_close(after, norm(total), atol=0, rtol=place)


@pytest.mark.parametrize("count", [1, MANY])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numerators_are_divided_and_taken_back_by_token(
    threads: Callable[[int], None], dtype: torch.dtype, count: int
) -> None:
    threads(count)
    values, sums = random(3, 7, 8, dtype=dtype), random(3, 7).abs() + 0.5
    cells = torch.tensor([0, 2, 3, 6])
    found = compiled.taken_back(values, sums, cells)
    expected = (values.double() / sums[..., None])[:, cells].transpose(0, 1)
    bound = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=bound)


def test_powers_are_right_to_a_place_of_bfloat16_and_nothing_where_a_key_is_not_seen() -> None:
    scores = (8 * random(4, 6, 33)).to(torch.bfloat16)
    seen = torch.tensor([33, 1, 17, 5, 32, 20])
    given = scores.clone()
    powers, sums = compiled.powers_and_sums(given, 1.5, seen)
    expected = torch.exp2(1.5 * scores.double())
    expected[:, torch.arange(33) >= seen[:, None]] = 0
    torch.testing.assert_close(powers.double(), expected, atol=0, rtol=2**-7.9)
    torch.testing.assert_close(sums.double(), powers.double().sum(-1), atol=0, rtol=1e-5)


def test_powers_out_of_range_stay_out_of_the_range_of_sums() -> None:
    scores = torch.tensor([[[-1e4, -1e30, float("-inf")], [1e4, 1e30, float("inf")]]])
    _, sums = compiled.powers_and_sums(scores.to(torch.bfloat16), 1.0, torch.tensor([3]))
    assert float(sums[0, 0]) < 2.0**-120 and float(sums[0, 1]) > 2.0**120


@pytest.mark.parametrize("longest", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_by_loops_are_those_by_operations(
    threads: Callable[[int], None],
    llama: LoadedModel,
    made_up: Made,
    dtype: torch.dtype,
    longest: int,
) -> None:
    records = llama.encoder.encode(made_up(30, longest=longest))
    model = copy.deepcopy(llama.model).to(dtype)  # pyright: ignore
    jobs = [Job(records.prefix(j), np.arange(30)) for j in range(3)]
    by = dict[int, Any]()
    for count in (1, MANY):
        threads(count)
        found = TransformersEngine(model, in_flight=2).score(records, jobs)
        by[count] = np.concatenate([scores.logprobs for scores in found])
    plain = np.concatenate([each.logprobs for each in NaiveEngine(model).score(records, jobs)])
    bound = 1e-5 if dtype == torch.float32 else 0.05
    np.testing.assert_allclose(by[1], by[MANY], atol=bound)
    np.testing.assert_allclose(by[1], plain, atol=bound)


def test_loops_are_for_few_threads_of_a_cpu_and_numbers_they_can_read(
    threads: Callable[[int], None],
) -> None:
    assert compiled.by_loops(random(1)) and compiled.by_loops(random(1, dtype=torch.bfloat16))
    assert not compiled.by_loops(random(1).to(torch.float16))
    meta = SimpleNamespace(dtype=torch.float32, device=torch.device("meta"))
    assert not compiled.by_loops(meta)  # pyright: ignore
    threads(MANY)
    assert not compiled.by_loops(random(1))
