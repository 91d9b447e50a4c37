import itertools

import pytest
from pydantic import ValidationError

from delift_pipeline.training.options import PRESETS, TrainingOptions


def test_compute_is_said_in_exactly_one_way() -> None:
    for both in ({}, {"steps": 3, "epochs": 1.0}):
        with pytest.raises(ValidationError, match="exactly one"):
            TrainingOptions.model_validate(both)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        TrainingOptions.model_validate({"steps": 3, "learning_rat": 1.0})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_a_round_trip(name: str) -> None:
    options = TrainingOptions.model_validate({"preset": name})
    assert TrainingOptions.model_validate(options.model_dump(mode="json")) == options


def test_values_beside_a_preset_win() -> None:
    options = TrainingOptions.model_validate({"preset": "paper", "steps": 7, "rank": 2})
    assert (options.steps, options.epochs, options.rank) == (7, None, 2)
    assert options.learning_rate == PRESETS["paper"]["learning_rate"]
    assert TrainingOptions.model_validate(options.model_dump(mode="json")) == options


def test_epochs_become_as_many_steps_as_they_fill() -> None:
    options = TrainingOptions(epochs=2.5, batch_size=4, accumulation=2)
    assert options.presentations(10) == 25
    assert options.total_steps(10) == 4
    assert TrainingOptions(steps=4, batch_size=4).presentations(10) == 16


def test_learning_rate_rises_then_falls_to_the_floor() -> None:
    options = TrainingOptions(steps=110, learning_rate=1.0, warmup_steps=10, floor=0.1)
    rates = [options.learning_rate_at(step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.109)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_cosine_and_constant_schedules() -> None:
    cosine = TrainingOptions(
        steps=100, learning_rate=1.0, warmup_steps=0, schedule="cosine", floor=0.0
    )
    assert cosine.learning_rate_at(0, 100) == 1.0
    assert cosine.learning_rate_at(50, 100) == pytest.approx(0.5)
    constant = cosine.model_copy(update={"schedule": "constant"})
    assert {constant.learning_rate_at(step, 100) for step in range(100)} == {1.0}
