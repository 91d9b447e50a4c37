import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from resources import JudgeResource


def test_without_a_model_nobody_judges(home: Home) -> None:
    assert JudgeResource().judge_setup(home) is None


def test_an_endpoint_needs_no_model_here_and_a_folder_does(home: Home) -> None:
    far = JudgeResource(model="prometheus", endpoint="http://127.0.0.1:8000/v1").judge_setup(home)
    near = JudgeResource(model="some/folder", device="cpu").judge_setup(home)
    assert far is not None and near is not None
    assert far.model is None
    assert far.options.endpoint == "http://127.0.0.1:8000/v1"
    assert near.model is not None
    assert near.model.device == "cpu"


def test_every_setting_out_of_range_is_named(home: Home) -> None:
    with pytest.raises(InputError) as refused:
        JudgeResource(model="x", mode="both", parallel=0, least_mass=2.0).judge_setup(home)
    assert {fault.field for fault in refused.value.faults} == {"mode", "parallel", "least_mass"}
