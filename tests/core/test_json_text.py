"""JSON that every reader takes."""

import datetime as dt
import json

import numpy as np
import pytest

from delift_pipeline.core.output import json_text


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_nan_and_infinities_are_null_at_every_depth() -> None:
    text = json_text({"a": float("nan"), "b": [{"c": float("-inf")}, (1.5,)]})
    assert json.loads(text, parse_constant=refuse) == {"a": None, "b": [{"c": None}, [1.5]]}


def test_numbers_of_numpy_stay_numbers() -> None:
    value = {"count": np.int64(3), "mean": np.float32("nan"), "row": np.array([1.5, np.inf])}
    assert json.loads(json_text(value)) == {"count": 3, "mean": None, "row": [1.5, None]}


def test_times_are_iso_8601() -> None:
    values = [dt.date(2024, 5, 1), dt.datetime(2024, 5, 1, 12), dt.time(12, 30)]
    assert json.loads(json_text(values)) == ["2024-05-01", "2024-05-01T12:00:00", "12:30:00"]


@pytest.mark.parametrize(
    ("encoding", "text"), [("utf-8", "grün"), ("ascii", "grün"), ("utf-8", "\ud83d")]
)
def test_what_an_encoding_lacks_is_an_escape(encoding: str, text: str) -> None:
    written = json_text({"text": text}, encoding)
    assert json.loads(written.encode(encoding)) == {"text": text}
