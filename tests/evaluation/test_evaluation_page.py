"""What docs/evaluation.md says can be done."""

import re
from pathlib import Path

import yaml

from delift_pipeline.evaluation.options import METRICS, EvaluationOptions
from delift_pipeline.records.recipes.table import RECIPES

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_example_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    options = EvaluationOptions.model_validate(yaml.safe_load(example)["defaults"]["evaluation"])
    assert options.in_context == 5


def test_it_names_every_metric_and_recipe() -> None:
    assert [name for name in (*METRICS, *RECIPES) if name not in PAGE] == []
