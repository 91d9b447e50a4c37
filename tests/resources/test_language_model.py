"""Which model a version is scored with, and which settings are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from resources import ComputeResource, LanguageModelResource


@pytest.fixture
def versions(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Version `own` was ingested with a model and a template, `bare` without."""
    monkeypatch.delenv("DELIFT_MODEL", raising=False)
    home.root.mkdir(parents=True)
    pool = home.root / "pool.jsonl"
    rows = (f'{{"id": "{n}", "instruction": "say {n}", "output": "{n}"}}\n' for n in range(20))
    pool.write_text("".join(rows))
    ingest(home, pool, version="own", model="demo", template="world")
    ingest(home, pool, version="bare")
    return home


def options(home: Home, version: str, **settings: Any) -> ModelOptions:
    return LanguageModelResource(**settings).options(home, version, ComputeResource())


def test_the_versions_own_model_and_template_are_the_default(versions: Home) -> None:
    found = options(versions, "own")
    assert (found.model, found.template, found.dtype) == ("demo", "world", "float32")
    assert (found.device, found.threads, found.trust_remote_code) == ("auto", None, False)


def test_a_home_that_has_moved_finds_its_models_and_names_no_path(
    home: Home, tmp_path: Path, tiny: ModelOptions
) -> None:
    pool = tmp_path / "pool.jsonl"
    rows = (f'{{"id": "{n}", "instruction": "say {n}", "output": "{n}"}}\n' for n in range(20))
    pool.write_text("".join(rows))
    inside = home.root / "models" / "mine"
    shutil.copytree(tiny.model, inside)
    ingest(home, pool, version="inside", model=str(inside))
    ingest(home, pool, version="outside", model=tiny.model)
    for version in ("inside", "outside"):
        text = (home.dataset(version) / "manifest.json").read_text()
        assert str(home.root) not in text and tiny.model not in text
    moved = Home.at(shutil.move(home.root, tmp_path / "moved"))
    assert options(moved, "inside").model == str(moved.root / "models" / "mine")
    assert options(moved, "outside").model == tiny.model
    assert (
        ingest(moved, pool, version="outside", model=tiny.model).details["model"]
        == (load_version(moved, "outside").manifest.details["model"])
    )
    (moved.root / "models.json").write_text(f'{{"{_model(moved)}": "/gone"}}')
    with pytest.raises(InputError, match=r"/gone, which is gone. Pass --model DIR"):
        options(moved, "outside")
    (moved.root / "models.json").unlink()
    with pytest.raises(InputError, match="is not listed"):
        options(moved, "outside")
    assert options(moved, "outside", model="demo").model == "demo"


def _model(home: Home) -> str:
    return load_version(home, "outside").manifest.details["model"]


def test_the_resource_overrides_the_version(versions: Home) -> None:
    found = options(versions, "own", model="other", template="plain", window=64, dtype="bfloat16")
    assert (found.model, found.template, found.window) == ("other", "plain", 64)
    assert found.dtype == "bfloat16"


def test_the_environment_comes_last(versions: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIFT_MODEL", "from-environment")
    assert options(versions, "own").model == "demo"
    found = options(versions, "bare")
    assert (found.model, found.template) == ("from-environment", "auto")


def test_no_model_anywhere_is_refused_with_how_to_name_one(versions: Home) -> None:
    with pytest.raises(InputError, match="--model"):
        options(versions, "bare")


@pytest.mark.parametrize(
    ("settings", "field"), [({"dtype": "float99"}, "dtype"), ({"window": 3}, "window")]
)
def test_settings_out_of_range_are_refused_by_name(
    versions: Home, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError) as refused:
        options(versions, "own", **settings)
    assert [fault.field for fault in refused.value.faults] == [field]


def test_compute_settings_reach_the_model(versions: Home) -> None:
    compute = ComputeResource(device="cpu", threads=2, batch_tokens=99)
    found = LanguageModelResource().options(versions, "own", compute)
    assert (found.device, found.threads, found.batch_tokens) == ("cpu", 2, 99)


def test_a_preset_fills_what_neither_resource_nor_version_says(versions: Home) -> None:
    found = options(versions, "bare", model="preset:qwen2-72b-instruct")
    assert (found.template, found.dtype, found.engine) == ("chat", "bfloat16", "vllm")
    assert found.tensor_parallel_size == 4
    own = options(versions, "own", model="preset:qwen2-72b-instruct", dtype="float16")
    assert (own.template, own.dtype) == ("world", "float16")


def test_every_fault_of_both_resources_is_named_at_once(versions: Home) -> None:
    compute = ComputeResource(device="cpu", device_map="auto", engine="vllm", batch_tokens=1)
    with pytest.raises(InputError) as refused:
        LanguageModelResource(dtype="f", window=3, load_in="2bit").options(versions, "own", compute)
    found = sorted(fault.field or "" for fault in refused.value.faults)
    assert found == ["device_map", "device_map", "dtype", "load_in", "load_in", "window"]
    assert all("\n" not in str(fault) for fault in refused.value.faults)


def test_large_models_are_asked_for_by_both_resources(versions: Home) -> None:
    compute = ComputeResource(device_map="auto", workers=2)
    asked = LanguageModelResource(load_in="4bit", template="chat")
    found = asked.options(versions, "own", compute)
    assert (found.load_in, found.device_map, found.workers) == ("4bit", "auto", 2)
    assert found.template == "chat"
