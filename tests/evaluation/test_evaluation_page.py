"""What docs/evaluation.md says can be done."""

import re
from pathlib import Path

import yaml

from delift_pipeline.evaluation.options import METRICS, EvaluationOptions
from delift_pipeline.records.recipes.table import RECIPES, TRANSFERS
from resources import JudgeResource

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_its_example_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    options = EvaluationOptions.model_validate(yaml.safe_load(example)["defaults"]["evaluation"])
    assert options.in_context == 5


def test_its_judge_in_dagster_is_valid() -> None:
    (block,) = re.findall(r"^    resources:\n(?:     .*\n)+", PAGE, re.MULTILINE)
    assert JudgeResource(**yaml.safe_load(block)["resources"]["judge"]["config"]).endpoint


def test_its_table_of_options_lists_every_option() -> None:
    section = PAGE.split("## Configure")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(
        EvaluationOptions.model_fields
    )


def test_it_names_every_metric_recipe_and_transfer() -> None:
    names = (*METRICS, *RECIPES, *TRANSFERS)
    assert [name for name in names if f"`{name}`" not in PAGE] == []
