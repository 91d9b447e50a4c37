"""A metric of one answer against its reference is one row of the table."""

from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.evaluation import result, run
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions, Metric
from delift_pipeline.evaluation.report import metric_bars
from delift_pipeline.evaluation.result import (
    SAMPLE_SCHEMA,
    differences,
    read_evaluation,
    write_evaluation,
)
from delift_pipeline.scoring.model import load_model
from delift_pipeline.scoring.options import ModelOptions


def same_length(generated: str, reference: str) -> float | None:
    return None if not reference else float(len(generated) == len(reference))


def test_it_is_measured_and_a_report_from_before_it_still_opens(
    tiny: ModelOptions, records: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny)
    asked = EvaluationOptions(metrics=("answer_loss", "exact_match"), max_new_tokens=4)
    (tmp_path / "before").mkdir()
    write_evaluation(tmp_path / "before", run.evaluate_model(loaded, records, asked), {})

    row = Metric("same length", "length", "share of answers as long as it", compare=same_length)
    monkeypatch.setitem(METRICS, "same_length", row)
    schema = pl.Schema({**SAMPLE_SCHEMA, "same_length": pl.Float64()})
    monkeypatch.setattr(result, "SAMPLE_SCHEMA", schema)
    monkeypatch.setattr(run, "SAMPLE_SCHEMA", schema)
    wider = asked.model_copy(update={"metrics": (*asked.metrics, "same_length")})
    found = run.evaluate_model(loaded, records, wider)
    samples = found.samples.select("generated", "reference", "same_length")
    assert samples["same_length"].to_list() == [same_length(*row[:2]) for row in samples.rows()]
    assert "same_length" in found.metrics and "same_length_se" in found.metrics

    before = read_evaluation(tmp_path / "before")
    assert before is not None and "same_length" not in before.samples.columns
    assert set(differences(found, before)) == {"answer_loss", "exact_match"}
    panels = metric_bars([("now", found.metrics, "chosen"), ("before", before.metrics, "plain")])
    assert [bar.label for bar in panels["same length, higher is better"]] == ["now"]
    assert len(panels) == 3


def test_options_know_the_metrics_of_the_table_and_no_other() -> None:
    assert EvaluationOptions(metrics=tuple(METRICS)).metrics == tuple(METRICS)
    with pytest.raises(ValueError, match="Input should be 'answer_loss', 'exact_match'"):
        EvaluationOptions(metrics=("nothing",))
    assert all(metric.generated for metric in METRICS.values() if metric.compare)
