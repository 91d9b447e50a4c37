"""What the compute resource asks of the engine."""

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.options import ModelOptions
from resources import ComputeResource, LanguageModelResource


def options(home: Home, compute: ComputeResource) -> ModelOptions:
    return LanguageModelResource(model="demo").options(home, "none", compute)


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that names no model."""

    class Manifest:
        details: dict[str, str] = {}  # noqa: RUF012

    monkeypatch.setattr("resources.version_manifest", lambda home, name: Manifest)


def test_the_engine_and_its_devices_reach_the_model(home: Home) -> None:
    asked = ComputeResource(engine="vllm", tensor_parallel_size=4, gpu_memory_utilization=0.8)
    found = options(home, asked)
    assert (found.engine, found.tensor_parallel_size) == ("vllm", 4)
    assert found.gpu_memory_utilization == 0.8
    assert options(home, ComputeResource()) == ModelOptions(model="demo")


def test_an_engine_that_does_not_exist_is_refused(home: Home) -> None:
    with pytest.raises(InputError, match=r"engine: .*'transformers'.*'vllm'"):
        options(home, ComputeResource(engine="vlm"))
