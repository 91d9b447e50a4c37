"""What stops, where, and what is said."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import polars as pl
import pytest

from delift_pipeline.core.home import Home

ARM = "instruction_tuning.delift"


def drop(home: Home, version: str, lines: Sequence[dict[str, str] | str], about: str = "") -> None:
    """A version in the inbox."""
    folder = home.inbox / version
    folder.mkdir(parents=True)
    text = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    (folder / "pool.jsonl").write_text(text, encoding="utf-8")
    if about:
        (folder / "version.yaml").write_text(about, encoding="utf-8")


def test_faulty_input_shows_as_a_failed_check_with_its_faults(
    ingested: Home, copied: Callable
) -> None:
    broken = copied(ingested)
    good = {"id": "1", "instruction": "say", "output": "yes"}
    drop(broken.home, "bad", [good, {"id": "2", "instruction": "say"}, "{not json"])
    broken.add_version("bad")
    result = broken.execute("score_version", "bad")
    said = result.failure
    assert "pool.jsonl:2" in said and "pool.jsonl:3" in said
    check = result.checks["raw_dataset.schema"]
    assert not check.passed and check.blocking
    assert check.metadata["faults"].value == len(said.splitlines())
    assert "pool.jsonl:2" in check.metadata["first faults"].value
    assert list(result.made) == []
    assert "bad" not in broken.home.versions()


def test_checks_that_a_refusal_kept_from_running_say_so_and_are_no_errors(
    ingested: Home, copied: Callable
) -> None:
    broken = copied(ingested)
    drop(broken.home, "bad", ["{not json"])
    broken.add_version("bad")
    broken.execute("score_version", "bad")
    names = {"schema", "not_empty", "disjoint", "inbox"}
    keys = [dg.AssetCheckKey(dg.AssetKey("raw_dataset"), name) for name in names]
    storage = broken.instance.event_log_storage
    records = storage.get_latest_asset_check_execution_by_key(keys)
    found = {key.name: record.evaluation for key, record in records.items()}
    assert None not in found.values() and set(found) == names
    errors = {name for name, one in found.items() if one.severity == dg.AssetCheckSeverity.ERROR}
    assert errors == {"schema"}
    assert all("not evaluated" in (found[name].description or "") for name in names - {"schema"})


def test_an_unknown_version_is_refused_with_those_there_are(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    made.add_version("nowhere")
    said = made.execute("score_version", "nowhere").failure
    assert "nowhere" in said and "v1, v2" in said
    assert len(said.splitlines()) == 1


def test_a_damaged_schema_stops_what_follows(ingested: Home, copied: Callable) -> None:
    made = copied(ingested)
    path = made.home.dataset("v1") / "pool.parquet"
    pl.read_parquet(path).with_columns(pl.col("copies").cast(pl.Int64)).write_parquet(path)
    result = made.execute("score_version", "v1")
    assert not result.success
    assert not result.checks["raw_dataset.schema"].passed
    assert list(result.made) == ["raw_dataset"]


def test_records_held_out_and_in_the_pool_stop_what_follows(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    folder = made.home.dataset("v1")
    pool, heldout = (pl.read_parquet(folder / f"{name}.parquet") for name in ("pool", "heldout"))
    pl.concat([heldout, pool.head(2)]).write_parquet(folder / "heldout.parquet")
    result = made.execute("score_version", "v1")
    assert not result.success
    check = result.checks["raw_dataset.disjoint"]
    assert not check.passed and check.metadata["shared"].value == 2
    assert list(result.made) == ["raw_dataset"]


def test_a_damaged_adapter_is_trained_again(world: Any, copied: Callable) -> None:
    made = copied(world.home)
    path = made.home.adapter("v1", ARM) / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    result = made.succeed("finetune_arm", "v1", ARM)
    assert result.facts("adapter")["reused"] is False
    assert result.checks["adapter.loads"].passed
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("version", "arm", "missing"),
    [("v1", "continual.delift", "--parent"), ("v2", "task_specific.delift", "--target")],
)
def test_an_inapplicable_arm_refuses_in_one_sentence(
    world: Any, copied: Callable, version: str, arm: str, missing: str
) -> None:
    said = copied(world.home).execute("finetune_arm", version, arm).failure
    assert f"{arm} does not apply to {version}" in said
    assert missing in said
    assert len(said.splitlines()) == 1


def test_an_arm_before_its_kernel_says_what_to_do(ingested: Home, copied: Callable) -> None:
    said = copied(ingested).execute("finetune_arm", "v1", ARM).failure
    assert "utility_kernel" in said and len(said.splitlines()) == 1


def test_steps_out_of_order_say_what_is_missing(ingested: Home, copied: Callable) -> None:
    made = copied(ingested)
    for asset, missing in (("utility_kernel", "pair_plan"), ("adapter", "subset")):
        arm = None if asset == "utility_kernel" else ARM
        said = made.execute_asset(asset, "v1", arm).failure
        assert missing in said and "materialise" in said.lower()
        assert len(said.splitlines()) == 1


def test_a_version_without_a_model_says_how_to_name_one(
    ingested: Home, copied: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DELIFT_MODEL", raising=False)
    made = copied(ingested)
    records = [{"id": str(i), "instruction": "say", "input": str(i), "output": "1"} for i in "1234"]
    drop(made.home, "bare", records)
    made.add_version("bare")
    result = made.execute("score_version", "bare")
    said = result.failure
    assert "--model" in said and "bare" in said
    assert list(result.made) == ["raw_dataset", "pair_plan"]


def test_an_unknown_model_is_refused_in_one_sentence(ingested: Home, copied: Callable) -> None:
    made = copied(ingested)
    result = made.execute("score_version", "v1", language_model={"model": "no-such-model"})
    said = result.failure
    assert "no-such-model" in said and len(said.splitlines()) == 1


def test_a_setting_out_of_range_is_refused_in_one_sentence(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    said = made.execute("score_version", "v1", language_model={"dtype": "float99"}).failure
    assert "float99" in said and len(said.splitlines()) == 1


def test_faults_in_arms_yaml_are_refused_in_one_line_each(ingested: Home, copied: Callable) -> None:
    made = copied(ingested)
    made.write_arms("arms:\n  instruction_tuning.delift: {budget: -1, training: {steps: 0}}\n")
    said = made.execute("score_version", "v1").failure
    assert "budget" in said and "steps" in said
