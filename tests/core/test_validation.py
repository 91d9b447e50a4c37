"""What a user reads where a field is unknown or has a wrong value."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from delift_pipeline.core.validation import faults_of


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(default=1, ge=1)
    epochs: int | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    training: Inner | None = None
    rounds: list[Inner] = []


def reasons(value: dict[str, Any]) -> dict[str | None, str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    return {one.field: one.reason for one in faults_of(caught.value, Outer, parent="arms.x")}


def test_an_unknown_field_is_answered_with_the_nearest_and_all_there_are() -> None:
    found = reasons({"name": "a", "training": {"stepz": 1}, "rounds": [{"nosuch": 1}]})
    assert set(found) == {"arms.x.training.stepz", "arms.x.rounds.0.nosuch"}
    assert "mean 'steps'" in found["arms.x.training.stepz"]
    assert all("steps, epochs" in reason for reason in found.values())


def test_a_wrong_value_is_named_and_a_missing_one_is_not() -> None:
    found = reasons({"training": {"steps": 0}})
    assert "got 0" in found["arms.x.training.steps"]
    assert "got" not in found["arms.x.name"]
