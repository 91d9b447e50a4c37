"""What the path over single layers keeps, and which way it attends."""

import copy
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.layers import SHORT, LayerPath, Start
from delift_pipeline.scoring.mixing import JointMixing, Mixing, SplitMixing
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.transformers_engine import TransformersEngine

Made = Callable[..., pl.DataFrame]


def counted(monkeypatch: pytest.MonkeyPatch, mixing: Mixing, name: str) -> list[int]:
    """One entry for each time that a way of mixing is asked."""
    calls, method = list[int](), getattr(mixing, name)
    monkeypatch.setattr(mixing, name, lambda *a, **k: calls.append(1) or method(*a, **k))
    return calls


def test_prefixes_of_one_length_share_the_first_layers_own_attention(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(12))
    rows = np.arange(12)
    jobs = [Job(records.prefix(j), rows) for j in range(12)]
    engine = TransformersEngine(llama.model)
    found = engine.score(records, jobs + jobs)
    ((_, ready),) = engine._made.kept.values()
    assert isinstance(ready.start, Start)
    lengths = {len(job.prefix) for job in jobs}
    assert {key[1] for key in ready.start.own} == {(length,) for length in lengths}
    assert len(lengths) < len(jobs)
    for job, scores in zip(jobs, found[12:], strict=True):
        alone = TransformersEngine(llama.model).score(records, [job])[0]
        np.testing.assert_array_equal(scores.logprobs, alone.logprobs)


@pytest.mark.parametrize("longest", [3, 60])
def test_short_targets_attend_in_one_softmax_and_long_ones_by_the_kernel(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    records = llama.encoder.encode(made_up(6, longest=longest))
    engine = TransformersEngine(llama.model)
    assert isinstance(engine.path, LayerPath)
    joint, split = engine.path.mixings
    assert isinstance(joint, JointMixing) and isinstance(split, SplitMixing)
    asked, kernel = (counted(monkeypatch, mixing, "own") for mixing in (joint, split))
    engine.score(records, [Job(records.prefix(1), np.arange(6))])
    widest = int(np.diff(records.target_starts).max()) - 1
    assert (bool(asked), bool(kernel)) == ((True, False) if widest <= SHORT else (False, True))
    assert (widest <= SHORT) == (longest == 3)


def test_in_float16_whose_exponentials_lose_digits_the_kernel_attends(
    llama: LoadedModel, made_up: Made
) -> None:
    records = llama.encoder.encode(made_up(6, longest=3))
    job = Job(records.prefix(1), np.arange(6))
    engine = TransformersEngine(copy.deepcopy(llama.model).to(torch.float16))  # pyright: ignore
    assert isinstance(engine.path, LayerPath)
    assert [type(mixing) for mixing in engine.path.mixings] == [SplitMixing]
    (found,), (exact,) = (
        each.score(records, [job]) for each in (engine, TransformersEngine(llama.model))
    )
    np.testing.assert_allclose(found.logprobs, exact.logprobs, atol=0.02)


def test_a_softmax_that_leaves_its_range_is_given_up_at_that_layer(
    llama: LoadedModel, made_up: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = llama.encoder.encode(made_up(6, longest=3))
    model = copy.deepcopy(llama.model)
    for name in ("q_proj", "k_proj"):
        getattr(model.model.layers[0].self_attn, name).weight.mul_(64)  # pyright: ignore
    engine = TransformersEngine(model)
    assert isinstance(engine.path, LayerPath)
    joint, split = engine.path.mixings
    given_up, done = (counted(monkeypatch, mixing, "joined") for mixing in (joint, split))
    engine.score(records, [Job(records.prefix(1), np.arange(6))])
    assert (len(given_up), len(done)) == (1, len(engine.path.layers))
