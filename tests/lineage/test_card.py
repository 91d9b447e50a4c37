"""The model card of an adapter."""

from pathlib import Path

import polars as pl
import yaml

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.lineage.card import card_text, write_card
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.training.log import TrainingLog

EVIL = "`</td>| rm -rf`\n# heading <script>"


def card(folder: Path, home: Home, records: pl.DataFrame, model: str = "org/model") -> str:
    dataset = DatasetVersion(
        version="v1",
        manifest=Manifest(
            kind="dataset", content_hash="d" * 32, details={"dataset": "things", "parents": ["v0"]}
        ),
        pool=records,
        target=None,
        heldout=records,
    )
    log = TrainingLog(
        method="lora", losses=[2.0, 1.0], learning_rates=[0.1, 0.1], steps=2, epochs=1, seconds=1,
        tokens=9, answer_tokens=3, trainable_parameters=4, parameters=8, records_used=11, seed=0,
        records_left_out={records["record_id"][0]: "too long"},
    )  # fmt: skip
    subset = Manifest(kind="subset", content_hash="s" * 32, counts={"pool": 12})
    adapter = Manifest(kind="adapter", content_hash="a" * 32, fingerprint="f" * 32)
    arm = load_arms(home).arm("instruction_tuning.delift")
    settings = arm.model_dump(mode="json")
    write_card(folder, dataset, arm.name, settings, model, records, adapter, subset, log)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_names_what_the_adapter_is_made_of(
    home: Home, tmp_path: Path, records: pl.DataFrame
) -> None:
    text = card(tmp_path, home, records)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "org/model"
    assert (front["library_name"], front["license"]) == ("peft", "unknown")
    for said in ("d" * 32, "s" * 32, "a" * 32, "f" * 32, "parents `v0`", "Not evaluated yet."):
        assert said in text
    assert "trained on 11 of the 12 records" in text
    assert "| `test` | 11 |" in text
    assert "are not known" in text


def test_equal_facts_give_equal_bytes(home: Home, tmp_path: Path, records: pl.DataFrame) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert card(tmp_path / "a", home, records) == card(tmp_path / "b", home, records)


def test_what_is_read_has_no_front_matter(
    home: Home, tmp_path: Path, records: pl.DataFrame
) -> None:
    card(tmp_path, home, records)
    assert card_text(tmp_path).startswith("# instruction_tuning.delift on v1\n")
    assert card_text(tmp_path / "absent") == ""


def test_source_names_are_no_markup(home: Home, tmp_path: Path, records: pl.DataFrame) -> None:
    named = records.with_columns(source=pl.lit(EVIL))
    text = card(tmp_path, home, named, model='x": {evil: 1}')
    (row,) = [line for line in text.splitlines() if "rm -rf" in line]
    assert row.split() == ["|", "`/td", "rm", "-rf", "#", "heading", "script`", "|", "11", "|"]
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == 'x": {evil: 1}'


def test_records_without_a_source_are_said_to_have_none(
    home: Home, tmp_path: Path, records: pl.DataFrame
) -> None:
    text = card(tmp_path, home, records.with_columns(source=pl.lit("")))
    assert "names no sources" in text
