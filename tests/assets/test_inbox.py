"""Versions dropped into the inbox."""

import shutil
from collections.abc import Callable

from delift_pipeline.core.home import Home
from delift_pipeline.demo.dataset import DemoFiles
from delift_pipeline.records.stored import load_version

ABOUT = """
dataset: demo
parents: [v1]
model: demo
template: world
coverage: neighbours
existing: pool
"""


def drop(home: Home, files: DemoFiles, version: str, about: str = ABOUT) -> None:
    folder = home.inbox / version
    folder.mkdir(parents=True)
    shutil.copy(files.second_pool, folder / "pool.jsonl")
    shutil.copy(files.second_heldout, folder / "heldout.jsonl")
    (folder / "version.yaml").write_text(about, encoding="utf-8")


def test_a_dropped_version_is_ingested_and_scored(
    ingested: Home, copied: Callable, demo_files: DemoFiles
) -> None:
    made = copied(ingested)
    drop(made.home, demo_files, "v3")
    made.add_version("v3")
    result = made.succeed("score_version", "v3")
    dataset = load_version(made.home, "v3")
    assert dataset.parents == ("v1",)
    assert dataset.pool.height == 44
    assert dataset.heldout.height == 20
    details = dataset.manifest.details
    assert (details["coverage"], details["existing"]) == ("neighbours", "pool")
    assert (details["model"], details["template"]) == ("demo", "world")
    assert made.home.plan("v3").is_dir()
    assert result.facts("raw_dataset")["reused"] is False


def test_a_dropped_version_is_not_read_again(
    ingested: Home, copied: Callable, demo_files: DemoFiles
) -> None:
    made = copied(ingested)
    drop(made.home, demo_files, "v3")
    made.add_version("v3")
    made.succeed("score_version", "v3")
    shutil.rmtree(made.home.inbox)
    again = made.succeed("score_version", "v3")
    assert again.facts("raw_dataset")["reused"] is True


def test_an_unknown_setting_in_version_yaml_is_refused_by_name(
    ingested: Home, copied: Callable, demo_files: DemoFiles
) -> None:
    made = copied(ingested)
    drop(made.home, demo_files, "v3", "parent: v1\ncoverage: some\n")
    made.add_version("v3")
    said = made.execute("score_version", "v3").failure
    assert "version.yaml" in said and "parent" in said
    assert "v3" not in made.home.versions()
