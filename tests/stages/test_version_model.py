"""Which template a version is scored with, and that it keeps it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.records.versions import ingest
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.score import score_version
from delift_pipeline.stages.version_model import with_version_template
from resources import ComputeResource, LanguageModelResource

Delift = Callable[..., Any]
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}say the {{ m.content }}{% else %} code of "
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ARMS = "arms:\n  instruction_tuning.delift-near: {options: {pairs: neighbours}}\n"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A file of records."""
    rows = ({"id": str(n), "instruction": f"say {n}", "output": f"{n}"} for n in range(12))
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def model(tiny: ModelOptions, tmp_path: Path) -> ModelOptions:
    """A model without a chat template, which can get one."""
    folder = shutil.copytree(tiny.model, tmp_path / "model")
    return tiny.model_copy(update={"model": str(folder)})


def add_chat_template(model: ModelOptions) -> None:
    (Path(model.model) / "chat_template.jinja").write_text(CHAT)


def score(home: Home, version: str, model: ModelOptions) -> None:
    home.arms_file.write_text(ARMS, encoding="utf-8")
    plan_pairs(home, version, load_arms(home))
    score_version(home, version, "baseline", model, SilentProgress())


def template_of(home: Home, version: str, model: ModelOptions | None = None, **more: Any) -> str:
    """The template that a run of the graph takes."""
    named = {"model": model.model} if model else {}
    return LanguageModelResource(**named, **more).options(home, version, ComputeResource()).template


def test_a_version_that_has_scores_keeps_their_template(
    home: Home, pool: Path, model: ModelOptions, tiny: ModelOptions
) -> None:
    ingest(home, pool, version="old-v1")
    score(home, "old-v1", model)
    ingest(home, pool, version="new-v1")
    ingest(home, pool, version="old-v2", parents=["old-v1"])
    add_chat_template(model)
    assert template_of(home, "old-v1", model) == "plain"
    # A version that continues it has its template; another version has that of the model.
    assert template_of(home, "old-v2", model) == "plain"
    assert template_of(home, "new-v1", model) == "auto"
    # The template that a user names wins, and so does a preset's.
    assert template_of(home, "old-v1", model, template="auto") == "auto"
    assert template_of(home, "old-v1", model, template="chat") == "chat"
    preset = ModelOptions(model="preset:opt-125m")
    assert with_version_template(home, "old-v1", preset).template == "paper"


def test_scores_of_other_weights_say_nothing(
    home: Home, pool: Path, model: ModelOptions, chat_folder: Path
) -> None:
    ingest(home, pool, version="v1")
    score(home, "v1", model)
    assert template_of(home, "v1", ModelOptions(model=str(chat_folder))) == "auto"


def test_the_oldest_scores_of_a_version_decide(home: Home, pool: Path, model: ModelOptions) -> None:
    ingest(home, pool, version="v1")
    score(home, "v1", model)
    score(home, "v1", model.model_copy(update={"template": "paper"}))
    stores = {
        str(one.details["template"]["name"]): path
        for path in (home.root / "scores").iterdir()
        if (one := read_manifest(path))
    }
    for template, created in (("plain", "2026-01-02"), ("paper", "2026-01-01")):
        manifest = read_manifest(stores[template])
        assert manifest is not None
        manifest.model_copy(update={"created": created}).write(stores[template])
    assert template_of(home, "v1", model) == "paper"


def test_ingest_stores_the_template_of_the_model(
    delift: Delift, home: Home, pool: Path, model: ModelOptions, chat_folder: Path
) -> None:
    def stored(version: str, *more: object, model: str) -> tuple[Any, Any]:
        arguments = ("ingest", pool, "--version", version, "--model", model, *more)
        manifest = delift(*arguments, "--home", home.root, "--json").json
        return manifest["details"]["template"], manifest["request"]["template"]

    assert stored("chat-v1", model=str(chat_folder)) == ("chat", None)
    assert stored("mine-v1", model=model.model) == ("plain", None)
    assert stored("named-v1", "--template", "paper", model=str(chat_folder)) == ("paper", "paper")
    assert stored("hub-v1", model="some/hub-model") == (None, None)
    assert stored("preset-v1", model="preset:opt-125m") == ("paper", None)
    add_chat_template(model)
    # The version keeps its template, and storing it again does nothing. A continuation has it too.
    assert stored("mine-v1", model=model.model) == ("plain", None)
    assert stored("mine-v2", "--parent", "mine-v1", model=model.model) == ("plain", None)
    assert stored("mine-v3", "--template", "auto", model=model.model) == ("chat", None)
    for version, template in (("mine-v1", "plain"), ("mine-v2", "plain"), ("mine-v3", "chat")):
        assert template_of(home, version) == template_of(home, version, model) == template
    # What was stored for one model says nothing about another. What the user named does.
    assert template_of(home, "chat-v1", model) == "auto"
    assert template_of(home, "named-v1", model) == "paper"


def test_a_template_that_cannot_be_used_is_said_when_a_version_is_stored(
    delift: Delift, home: Home, pool: Path, model: ModelOptions
) -> None:
    (Path(model.model) / "chat_template.jinja").write_text("{{ messages[0].content | upper }}")
    arguments = ("ingest", pool, "--version", "v1", "--model", model.model, "--home", home.root)
    answer = delift(*arguments, "--json")
    assert answer.json["details"]["template"] == "plain"
    assert "chat template does not write a text as it is given, so records are" in answer.err
