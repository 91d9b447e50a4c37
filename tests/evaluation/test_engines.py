"""Which engine evaluates, and what of the choice needs no vLLM."""

import importlib.util

import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.engines import VllmModel, load_for_evaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.evaluation.run import evaluate
from delift_pipeline.scoring.options import ModelOptions

BY_VLLM = EvaluationOptions(engine="vllm")


def test_the_engine_is_no_part_of_what_greedy_results_are_known_by() -> None:
    assert BY_VLLM.request == EvaluationOptions().request
    sampled = EvaluationOptions(generation="paper")
    by_vllm = sampled.model_copy(update={"engine": "vllm"})
    assert by_vllm.request == sampled.request | {"engine": "vllm"}


def test_evaluation_by_vllm_is_refused_where_it_is_missing(
    tiny: ModelOptions, records: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else found(name)
    )
    with pytest.raises(InputError, match="engine: vLLM is not installed here"):
        evaluate(tiny, None, records, BY_VLLM)


def test_settings_that_exclude_the_engine_are_refused(tiny: ModelOptions) -> None:
    quantised = tiny.model_copy(update={"load_in": "4bit"})
    with pytest.raises(InputError, match="load_in: engine vllm does not quantise"):
        load_for_evaluation(quantised, None, BY_VLLM)
    split = tiny.model_copy(update={"engine": "vllm", "tensor_parallel_size": 2})
    with pytest.raises(InputError, match="tensor_parallel_size: only engine vllm"):
        load_for_evaluation(split, None, EvaluationOptions(engine="transformers"))


def test_the_reference_engine_of_scoring_evaluates_by_transformers(tiny: ModelOptions) -> None:
    naive = tiny.model_copy(update={"engine": "naive"})
    assert not isinstance(load_for_evaluation(naive, None, EvaluationOptions()), VllmModel)
