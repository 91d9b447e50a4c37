import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.evaluation.forgetting import base_evaluation
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.scoring.options import ModelOptions

FINGERPRINT = "a" * 32


def never(*_: object) -> None:
    raise AssertionError("measured although it is stored")


def test_the_base_model_is_measured_once(
    home: Home, tiny: ModelOptions, records: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EvaluationOptions(metrics=("answer_loss", "exact_match"))
    first = base_evaluation(home, "v1", tiny, FINGERPRINT, records, options)
    options = options.model_copy(update={"batch_size": 3})
    monkeypatch.setattr("delift_pipeline.evaluation.run.evaluate", never)
    again = base_evaluation(home, "v1", tiny, FINGERPRINT, records, options)
    assert again.metrics == first.metrics
    assert again.samples.equals(first.samples)
    assert again.content_hash == first.content_hash
    manifest = read_manifest(home.base_report("v1", FINGERPRINT))
    assert manifest is not None
    assert manifest.content_hash == first.content_hash


def test_another_request_or_heldout_set_is_measured_again(
    home: Home, tiny: ModelOptions, records: pl.DataFrame
) -> None:
    loss = EvaluationOptions(metrics=("answer_loss",))
    base_evaluation(home, "v1", tiny, FINGERPRINT, records, loss)
    fewer = base_evaluation(home, "v1", tiny, FINGERPRINT, records.head(3), loss)
    assert fewer.counts["records"] == 3
    more = loss.model_copy(update={"metrics": ("answer_loss", "exact_match")})
    found = base_evaluation(home, "v1", tiny, FINGERPRINT, records.head(3), more)
    assert "exact_match" in found.metrics
