"""Every summary names the prompt template, which is the model's own by default."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Delift = Callable[..., Any]
ARMS = """
defaults:
  training: {preset: demo, steps: 2, batch_size: 4}
  evaluation: {metrics: [answer_loss]}
arms:
  instruction_tuning.random: {budget: 4}
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A file of records."""
    rows = ({"id": str(n), "instruction": f"say {n}", "output": f"{n}"} for n in range(10))
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("named", "template"), [((), "chat"), (("--template", "plain"), "plain")])
def test_commands_on_files_name_the_template(
    delift: Delift, pool: Path, chat_folder: Path, tmp_path: Path, named: Any, template: str
) -> None:
    common = (pool, "--model", chat_folder, "--device", "cpu", "--home", tmp_path / "home", *named)
    selected = ("select", *common, "--budget", 3, "--out", tmp_path / "chosen.jsonl")
    assert delift(*selected, "--json").json["template"] == template
    assert f"prompt template: {template}" in delift(*selected).out
    scored = ("score", *common, "--out", tmp_path / "scores.parquet")
    assert delift(*scored, "--json").json["template"] == template
    assert f"prompt template {template}" in delift(*scored).out
    planned = ("plan", *common, "--no-measure")
    assert delift(*planned, "--json").json["template"] == template
    assert f"template  {template}" in delift(*planned).out
    text = delift("prompt", pool, "--model", chat_folder, *named, "--target", "3").out
    assert ("<|user|>" in text) is (template == "chat")


def test_the_fallback_is_said_with_its_reason(
    delift: Delift, pool: Path, chat_folder: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(chat_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content | upper }}")
    common = (pool, "--model", folder, "--device", "cpu", "--home", tmp_path / "home", "--json")
    reason = "chat template does not write a text as it is given, so records are written with"
    for command in (
        ("select", *common, "--budget", 3, "--out", tmp_path / "chosen.jsonl"),
        ("score", *common, "--out", tmp_path / "scores.parquet"),
    ):
        answer = delift(*command)
        assert answer.json["template"] == "plain" and reason in answer.err
    planned = delift("plan", *common, "--no-measure").json
    assert planned["template"] == "plain" and reason in planned["notes"][0]


def test_a_run_names_the_template_everywhere(
    delift: Delift, pool: Path, chat_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    model = ("--model", chat_folder)
    assert delift("ingest", pool, "--version", "v1", *model, "--home", home).status == 0
    (home / "arms.yaml").write_text(ARMS, encoding="utf-8")
    answer = delift("run", "--version", "v1", "--device", "cpu", "--home", home, "--json")
    assert answer.json["template"] == "chat"
    arm = "v1/instruction_tuning.random"
    report = json.loads((home / "reports" / arm / "report.json").read_text("utf-8"))
    assert report["template"] == "chat"
    page = (home / "reports" / arm / "report.html").read_text("utf-8")
    assert "<dt>prompt template</dt><dd>chat</dd>" in page
    manifest = json.loads((home / "adapters" / arm / "manifest.json").read_text("utf-8"))
    assert manifest["details"]["template"] == "chat"
    card = (home / "adapters" / arm / "README.md").read_text("utf-8")
    assert "| prompt template | `chat` |" in card
    planned = delift("plan", "--version", "v1", "--no-measure", "--home", home, "--json").json
    assert planned["template"] == "chat" and planned["pairs"] == 0
