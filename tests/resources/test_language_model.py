"""Which model a version is scored with, and which settings are refused."""

from typing import Any

import pytest

from delift_pipeline.errors import Refused
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.storage.home import Home
from resources.compute import ComputeResource
from resources.language_model import LanguageModelResource


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


def test_the_resource_overrides_the_version(versions: Home) -> None:
    found = options(versions, "own", model="other", template="plain", window=64, dtype="bfloat16")
    assert (found.model, found.template, found.window) == ("other", "plain", 64)
    assert found.dtype == "bfloat16"


def test_the_environment_comes_last(versions: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIFT_MODEL", "from-environment")
    assert options(versions, "own").model == "demo"
    found = options(versions, "bare")
    assert (found.model, found.template) == ("from-environment", "plain")


def test_no_model_anywhere_is_refused_with_how_to_name_one(versions: Home) -> None:
    with pytest.raises(Refused, match="--model"):
        options(versions, "bare")


@pytest.mark.parametrize(
    ("settings", "field"), [({"dtype": "float99"}, "dtype"), ({"window": 3}, "window")]
)
def test_settings_out_of_range_are_refused_by_name(
    versions: Home, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(Refused) as refused:
        options(versions, "own", **settings)
    assert [fault.field for fault in refused.value.faults] == [field]


def test_compute_settings_reach_the_model(versions: Home) -> None:
    compute = ComputeResource(device="cpu", threads=2, batch_tokens=99)
    found = LanguageModelResource().options(versions, "own", compute)
    assert (found.device, found.threads, found.batch_tokens) == ("cpu", 2, 99)
