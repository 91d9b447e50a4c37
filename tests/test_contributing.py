"""The examples of CONTRIBUTING.md run as they stand."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import polars as pl
import pytest

from delift_pipeline.evaluation import run, text_metrics
from delift_pipeline.evaluation.options import METRICS, EvaluationOptions, Metric
from delift_pipeline.records.read import read_records, write_records
from delift_pipeline.records.tables import FORMATS
from delift_pipeline.selection import registry
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def example(heading: str) -> dict[str, Any]:
    """The names that the example below a heading defines."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ", 1)[0], re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_selector_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [type(selector) for selector in registry.SELECTORS.values()]
    own = example("Add a selector")["WordsSelector"]
    monkeypatch.setattr(registry, "SELECTORS", registry.register(*kinds, own))
    pool = pl.DataFrame(
        {
            "record_id": ["a", "b", "c"],
            "source_ids": [["1"], ["2"], ["3"]],
            "instruction": ["one", "one two three", "one two"],
            "input": ["", "", ""],
            "output": ["x x x x", "x y", "x y z"],
        }
    )
    inputs = SelectionInputs("instruction_tuning", pool)
    assert select(inputs, "words", 2, 0, {}).ranking == ("c", "b")
    assert select(inputs, "words", 2, 0, {"of": "instruction"}).ranking == ("b", "c")


def test_file_format_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = example("Add a file format")["CARDS"]
    monkeypatch.setitem(FORMATS, form.name, form)
    source, out = tmp_path / "pool.cards", tmp_path / "chosen.cards.gz"
    source.write_text("instruction: Add\noutput: 3\n\ninstruction: Say\noutput: yes\n")
    file = read_records(source)
    write_records(out, file, file.frame["record_id"][1:].to_list())
    assert read_records(out).rows == [{"instruction": "Say", "output": "yes"}]


def test_metric_is_measured_answer_by_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## Add a metric\n", 1)[1]
    row = dedent(section[section.index('    "same_length": Metric(') :].split("\n\n", 1)[0])
    function = example("Add a metric")["same_length"]
    monkeypatch.setattr(text_metrics, "same_length", function, raising=False)
    table = eval(f"{{{row}}}", {"Metric": Metric, "text_metrics": text_metrics})
    monkeypatch.setitem(METRICS, "same_length", table["same_length"])
    options = EvaluationOptions().model_copy(update={"metrics": ("same_length",)})
    found = run._text_metrics(["ab", "a", "a"], ["cd", "bc", ""], options, "cpu")
    assert found == {"same_length": [1.0, 0.0, None]}
