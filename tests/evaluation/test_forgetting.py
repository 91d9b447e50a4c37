"""The matrix of models and held-out sets, and what it says was forgotten."""

import polars as pl
import pytest

from delift_pipeline.evaluation.forgetting import Forgetting, Row, evaluation_of
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, summarise


def evaluation(losses: dict[str, float]) -> Evaluation:
    samples = pl.DataFrame({"record_id": list(losses), "answer_loss": list(losses.values())})
    missing = [name for name in SAMPLE_SCHEMA if name not in samples.columns]
    samples = samples.with_columns(pl.lit(None).alias(name) for name in missing)
    samples = samples.select(SAMPLE_SCHEMA.names()).cast(dict(SAMPLE_SCHEMA))  # pyright: ignore
    return Evaluation(summarise(samples), samples, {"records": len(losses)})


FIRST = evaluation({"a": 1.0, "b": 2.0, "c": 3.0})
"""The first version's model on its own held-out set."""
LATER = evaluation({"a": 2.0, "b": 3.5, "c": 4.5})
"""The second version's model on the first one's held-out set."""
NEW = evaluation({"d": 1.0, "e": 1.0})


@pytest.fixture
def matrix() -> Forgetting:
    return Forgetting(
        ["v1", "v2"],
        [
            Row("initial", None, {"v1": evaluation({"a": 5.0, "b": 5.0, "c": 5.0}), "v2": NEW}),
            Row("v1", "instruction_tuning.delift", {"v1": FIRST}),
            Row("v2", "continual.delift", {"v1": LATER, "v2": NEW}),
        ],
    )


def test_the_change_of_an_earlier_set_is_paired_with_its_own_model(matrix: Forgetting) -> None:
    gap = matrix.changes()["v1"]["answer_loss"]
    assert gap.mean == pytest.approx((1.0 + 1.5 + 1.5) / 3)
    assert gap.improvement == pytest.approx(-gap.mean)
    assert gap.records == 3
    assert matrix.improvements() == {"improvement_on_v1_answer_loss": pytest.approx(-4 / 3)}


def test_what_was_not_measured_is_null_and_never_a_number(matrix: Forgetting) -> None:
    facts = matrix.as_json()
    assert facts["heldout"] == ["v1", "v2"]
    rows = {row["model"]: row["metrics"] for row in facts["rows"]}
    assert rows["v1"]["v2"] is None
    assert rows["v2"]["v1"]["answer_loss"] == pytest.approx(10 / 3)
    assert list(facts["changes"]) == ["v1"]


def test_the_table_has_a_line_for_each_model_and_a_column_for_each_set(matrix: Forgetting) -> None:
    frame = matrix.frame()
    assert frame["model"].to_list() == ["initial", "v1", "v2"]
    assert frame.columns[-2:] == ["on v1", "on v2"]
    assert frame["on v2"].to_list()[1] == ""
    (section,) = matrix.page_tables()
    assert section["changes"][0]["style"] == "bad" and section["changes"][1]["text"] == ""


def test_a_model_of_a_version_that_was_never_evaluated_changes_nothing(matrix: Forgetting) -> None:
    without = Forgetting(matrix.heldout, [matrix.rows[0], matrix.rows[2]])
    assert without.changes() == {}


def test_a_sets_measurements_are_summarised_over_its_own_records_only() -> None:
    samples = pl.concat([LATER.samples, NEW.samples])
    found = evaluation_of(samples, pl.Series("record_id", ["a", "d", "x"]))
    assert found is not None
    assert found.metrics["answer_loss"] == pytest.approx(1.5)
    assert evaluation_of(samples, pl.Series("record_id", ["x"])) is None
