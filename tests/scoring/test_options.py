"""Settings that exclude one another are refused, each with what to do."""

from typing import Any

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.options import ModelOptions, read_options

CONFLICTS: list[tuple[dict[str, Any], str, str]] = [
    ({"engine": "vllm", "load_in": "4bit"}, "load_in", "does not quantise"),
    ({"engine": "vllm", "device_map": "auto"}, "device_map", "tensor_parallel_size"),
    ({"tensor_parallel_size": 2}, "tensor_parallel_size", "engine vllm splits"),
    ({"device": "cpu", "device_map": "auto"}, "device_map", "one device"),
    ({"device": "cuda:1", "workers": 2}, "device", "devices of its own"),
    ({"load_in": "8bit"}, "load_in", "float16"),
]


@pytest.mark.parametrize(("given", "field", "why"), CONFLICTS)
def test_a_conflict_is_one_sentence_on_one_field(
    given: dict[str, Any], field: str, why: str
) -> None:
    with pytest.raises(InputError, match=why) as refused:
        read_options({"model": "some/model", **given})
    assert [fault.field for fault in refused.value.faults] == [field]
    with pytest.raises(ValueError, match=why):
        ModelOptions.model_validate({"model": "some/model", **given})


def test_settings_that_agree_are_accepted() -> None:
    for given in (
        {"engine": "vllm", "tensor_parallel_size": 2, "workers": 2},
        {"load_in": "8bit", "dtype": "float16", "device_map": "auto"},
        {"device": "cuda", "workers": 8},
    ):
        assert read_options({"model": "some/model", **given})


def test_what_is_none_is_not_given() -> None:
    assert read_options({"model": "m", "dtype": None, "window": None}) == ModelOptions(model="m")
