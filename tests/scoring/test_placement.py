"""Where and how weights are loaded: device maps, 4 and 8 bits, and no room for them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.engines import NaiveEngine, engine_for
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.model_files import stored_parameters, weight_files
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions

# In 8 bits the numbers of a whole batch decide which columns stay in 16 bits.
BOUNDS = {"4bit": 1e-4, "8bit": 0.25}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra"
)


def reloaded(llama: LoadedModel, **changes: Any) -> LoadedModel:
    return load_model(llama.options.model_copy(update={"device": "auto", **changes}))


def logprobs(loaded: LoadedModel, made_up: Callable[..., Any], naive: bool = False) -> np.ndarray:
    records = loaded.encoder.encode(made_up(6))
    engine = NaiveEngine(loaded.model) if naive else engine_for(loaded)
    found = engine.score(records, [Job(records.prefix(1), np.arange(6))])
    return found[0].logprobs


def test_a_device_map_changes_no_score(llama: LoadedModel, made_up: Callable[..., Any]) -> None:
    mapped = reloaded(llama, device_map="auto")
    assert mapped.fingerprint.digest == llama.fingerprint.digest
    np.testing.assert_allclose(logprobs(mapped, made_up), logprobs(llama, made_up), atol=1e-5)


def test_a_model_on_several_places_is_scored_by_its_own_forward_pass(
    llama: LoadedModel, made_up: Callable[..., Any], tmp_path: Path
) -> None:
    from accelerate import dispatch_model

    spread = reloaded(llama)
    names = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    places: dict[str, Any] = dict.fromkeys(names, "cpu")
    places |= dict.fromkeys(("model.layers.1", "model.layers.2"), "disk")
    cpu: Any = "cpu"
    dispatch_model(spread.model, places, main_device=cpu, offload_dir=str(tmp_path))
    np.testing.assert_allclose(logprobs(spread, made_up), logprobs(llama, made_up), atol=1e-5)
    assert engine_for(spread).settings["why_not_layers"] == "it lies on several devices"


@needs_bitsandbytes
@pytest.mark.parametrize(("load_in", "dtype"), [("4bit", "float32"), ("8bit", "float16")])
def test_quantised_weights_are_scored_as_plain_passes_of_them_score(
    load_in: str, dtype: str, made_up: Callable[..., Any]
) -> None:
    whole = load_model(ModelOptions(model=MODEL_DEMO, template="world", threads=1))
    small = reloaded(whole, load_in=load_in, dtype=dtype)
    assert small.fingerprint.digest != whole.fingerprint.digest
    mine, naive = logprobs(small, made_up), logprobs(small, made_up, naive=True)
    np.testing.assert_allclose(mine, naive, atol=BOUNDS[load_in])
    assert np.abs(mine - logprobs(whole, made_up)).max() > 1e-3
    assert small.model.get_memory_footprint() < whole.model.get_memory_footprint()


def test_missing_bitsandbytes_is_said_with_the_command(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(InputError, match="load_in 8bit needs bitsandbytes: pip install") as refused:
        reloaded(llama, load_in="8bit")
    assert [fault.field for fault in refused.value.faults] == ["load_in"]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce] can't allocate memory")],
)
def test_weights_that_do_not_fit_say_how_much_they_take_and_what_takes_less(
    error: Exception, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.LlamaForCausalLM.to", full)
    with pytest.raises(DeliftError, match=r"weights take 0.0 GiB in float32.*load_in 4bit") as said:
        reloaded(llama)
    assert f"{llama.model.num_parameters():,} weights" in str(said.value)


def test_parameters_are_counted_from_the_files_headers(llama: LoadedModel) -> None:
    assert stored_parameters(weight_files(llama.folder)) == llama.model.num_parameters()
