import datetime as dt
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, mark_for_rebuilding, read_manifest
from delift_pipeline.lineage.adapter import TRAINED_ON, adapter_lineage
from delift_pipeline.lineage.record import record_lineage
from delift_pipeline.lineage.tracked import read_tracking_note
from delift_pipeline.lineage.version import version_lineage
from delift_pipeline.records.versions import ingest
from delift_pipeline.training.log import read_training_log

FIRST, SECOND = "instruction_tuning.delift_trusted", "continual.delift_trusted"


def subset_ids(home: Home, version: str, arm: str) -> list[str]:
    return pl.read_parquet(home.subset(version, arm) / "subset.parquet")["record_id"].to_list()


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_adapter_names_everything_it_was_made_of(made: Home) -> None:
    found = adapter_lineage(made, "v2", SECOND)
    adapter = manifest_of(made.adapter("v2", SECOND))
    assert found.adapter["content_hash"] == adapter.content_hash
    assert [one["version"] for one in found.data] == ["v2", "v1"]
    assert found.model["fingerprint"] == adapter.fingerprint
    assert "model.safetensors" in found.model["weights"]
    assert found.runs["dagster"][found.adapter["name"]] == adapter.run_id
    assert (
        found.runs["mlflow"]["run_id"] == read_tracking_note(made.adapter("v2", SECOND))["run_id"]
    )
    code = found.code[found.adapter["name"]]
    assert code["packages"]["torch"] == adapter.packages["torch"]
    assert code["git_commit"] == adapter.git_commit
    assert {"kernel:v2:neighbours", "scores:v2", "plan:v2"} <= {
        one["made_of"] for one in found.scores
    }
    assert "answer_loss" in found.metrics
    assert {edge["state"] for edge in found.causes} == {"as recorded"}
    assert found.notes == []


def test_adapter_lists_its_records_and_those_of_the_one_it_started_from(made: Home) -> None:
    records = adapter_lineage(made, "v2", SECOND).records
    assert records is not None
    own = [row["record_id"] for row in records if row["adapter"] == f"adapter:v2:{SECOND}"]
    before = [row["record_id"] for row in records if row["adapter"] == f"adapter:v1:{FIRST}"]
    assert own == subset_ids(made, "v2", SECOND)
    assert before == subset_ids(made, "v1", FIRST)
    assert [row["rank"] for row in records] == [*range(len(own)), *range(len(before))]
    gains = pl.read_parquet(made.subset("v2", SECOND) / "subset.parquet")["gain"].to_list()
    assert [row["gain"] for row in records[: len(own)]] == gains


def test_record_tells_every_arm_s_choice_and_every_adapter_it_shaped(made: Home) -> None:
    picked = subset_ids(made, "v1", FIRST)[0]
    found = record_lineage(made, picked)
    chosen = {(one["version"], one["arm"]): one for one in found.subsets}
    mine = chosen["v1", FIRST]
    assert (mine["taken"], mine["rank"]) == (True, 0)
    assert mine["reason"].startswith("chosen at rank 0, gain")
    through = {(one["version"], one["arm"]): one["through"] for one in found.adapters}
    assert through["v1", FIRST] is None
    assert through["v2", SECOND] == f"adapter:v1:{FIRST}"
    assert {(one["version"], one["arm"]) for one in found.reports} == set(through)
    assert [one["version"] for one in found.versions] == ["v1", "v2"]


def test_dropped_record_names_who_covers_it(made: Home) -> None:
    dropped = pl.read_parquet(made.subset("v1", FIRST) / "dropped.parquet")
    row = dropped.filter(pl.col("covered_by").is_not_null()).row(0, named=True)
    found = record_lineage(made, row["record_id"])
    (mine,) = [one for one in found.subsets if (one["version"], one["arm"]) == ("v1", FIRST)]
    assert mine["taken"] is False
    assert row["covered_by"] in mine["reason"]
    assert all(one["adapter"] != f"adapter:v1:{FIRST}" for one in found.adapters)


def test_held_out_record_tells_what_was_measured_on_it(made: Home) -> None:
    name = pl.read_parquet(made.dataset("v1") / "heldout.parquet")["record_id"][0]
    found = record_lineage(made, name)
    assert found.subsets == [] and found.adapters == []
    assert {one["arm"] for one in found.measured if one["version"] == "v1"} == {
        FIRST,
        "instruction_tuning.random",
    }
    samples = pl.read_parquet(made.report("v1", FIRST) / "samples.parquet")
    wanted = samples.filter(pl.col("record_id") == name)["answer_loss"][0]
    (mine,) = [one for one in found.measured if (one["version"], one["arm"]) == ("v1", FIRST)]
    assert mine["answer_loss"] == wanted


def test_version_tells_what_changed_and_what_that_did_to_each_subset(made: Home) -> None:
    found = version_lineage(made, "v2")
    (parent,) = found.parents
    first, second = (
        set(pl.read_parquet(made.dataset(v) / "pool.parquet")["record_id"]) for v in ("v1", "v2")
    )
    assert set(parent["added"]) == second - first
    assert (parent["removed"], parent["changed"]) == ([], [])
    (mine,) = [one for one in found.subsets if one["arm"] == SECOND]
    now, then = set(subset_ids(made, "v2", SECOND)), set(subset_ids(made, "v1", FIRST))
    assert mine["against"] == FIRST
    assert {row["record_id"] for row in mine["came"]} == now - then
    assert {row["record_id"] for row in mine["went"]} == then - now
    assert mine["kept"] == len(now & then)
    assert version_lineage(made, "v1").children == ["v2"]


def write_pool(path: Path, rows: dict[str, str]) -> Path:
    lines = [
        json.dumps({"id": name, "instruction": "say", "input": text, "output": text})
        for name, text in rows.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_edited_record_is_changed_neither_added_nor_removed(home: Home, tmp_path: Path) -> None:
    held = write_pool(tmp_path / "held.jsonl", {"h": "held"})
    before = write_pool(tmp_path / "one.jsonl", {"a": "one", "b": "two", "c": "three"})
    after = write_pool(tmp_path / "two.jsonl", {"a": "one", "b": "TWO", "d": "four"})
    ingest(home, before, version="w1", heldout=held)
    ingest(home, after, version="w2", parents=["w1"])
    texts = dict(
        pl.read_parquet(home.dataset("w1") / "pool.parquet").select("input", "record_id").rows()
    ) | dict(
        pl.read_parquet(home.dataset("w2") / "pool.parquet").select("input", "record_id").rows()
    )
    (parent,) = version_lineage(home, "w2").parents
    assert parent["changed"] == [(texts["two"], texts["TWO"])]
    assert parent["added"] == [texts["four"]]
    assert parent["removed"] == [texts["three"]]
    assert parent["unchanged"] == 1


def test_lineage_is_the_same_without_the_databases(copied: Home, delift) -> None:
    picked = subset_ids(copied, "v1", FIRST)[0]
    asked = [("--adapter", f"v2/{SECOND}"), ("--record", picked), ("--version", "v2")]

    def answers() -> list[Any]:
        given = [("lineage", *one, "--home", copied.root) for one in asked]
        return [delift(*one, "--json").json for one in given] + [delift(*one).out for one in given]

    before = answers()
    assert copied.dagster.is_dir() and copied.mlflow.is_dir()
    shutil.rmtree(copied.dagster)
    shutil.rmtree(copied.mlflow)
    copied.catalog.unlink(missing_ok=True)
    assert answers() == before
    assert before[0]["runs"]["mlflow"]["run_id"]
    assert not copied.catalog.exists()


def test_subset_chosen_anew_leaves_the_adapter_s_records_and_is_said(copied: Home) -> None:
    before = adapter_lineage(copied, "v1", FIRST).records
    folder = copied.subset("v1", FIRST)
    other = manifest_of(folder).model_copy(update={"content_hash": "0" * 32})
    other.write(folder)
    found = adapter_lineage(copied, "v1", FIRST)
    assert before is not None and found.records is not None
    assert [r["record_id"] for r in found.records] == [r["record_id"] for r in before]
    assert all(row["gain"] is None for row in found.records)
    assert any("changed since" in note for note in found.notes)


def test_adapter_without_a_list_is_read_from_its_subset_or_said_to_be_lost(copied: Home) -> None:
    (copied.adapter("v1", FIRST) / TRAINED_ON).unlink()
    found = adapter_lineage(copied, "v1", FIRST)
    assert found.records is not None
    assert [row["record_id"] for row in found.records] == subset_ids(copied, "v1", FIRST)
    shutil.rmtree(copied.subset("v1", FIRST))
    found = adapter_lineage(copied, "v1", FIRST)
    assert found.records is None
    assert any("is lost" in note for note in found.notes)
    assert any("gone" in note for note in found.notes)


def test_mark_for_rebuilding_is_said(copied: Home) -> None:
    mark_for_rebuilding(copied.adapter("v1", FIRST), "record x was forgotten")
    assert any("record x was forgotten" in n for n in adapter_lineage(copied, "v1", FIRST).notes)


def required(value: dict[str, Any], *names: str) -> None:
    assert set(names) <= value.keys(), value


def facets(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    datasets = [*event["inputs"], *event["outputs"]]
    for holder in (event["run"], event["job"], *datasets):
        yield from holder["facets"].values()


def test_openlineage_events_have_what_the_specification_requires(
    made: Home, tmp_path: Path, delift
) -> None:
    path = tmp_path / "events.jsonl"
    given = ("lineage", "--adapter", f"v2/{SECOND}", "--home", made.root)
    assert delift(*given, "--openlineage", path).status == 0
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for event in events:
        required(event, "eventType", "eventTime", "producer", "schemaURL", "run", "job")
        assert event["schemaURL"].endswith("2-0-2/OpenLineage.json#/$defs/RunEvent")
        assert dt.datetime.fromisoformat(event["eventTime"]).tzinfo is not None
        uuid.UUID(event["run"]["runId"])
        required(event["job"], "namespace", "name")
        for dataset in (*event["inputs"], *event["outputs"]):
            required(dataset, "namespace", "name")
        for facet in facets(event):
            required(facet, "_producer", "_schemaURL")
    runs = {event["run"]["runId"] for event in events}
    for run in runs:
        kinds = [event["eventType"] for event in events if event["run"]["runId"] == run]
        assert kinds == ["START", "COMPLETE"]


def durations(home: Home, path: Path, delift) -> dict[str, float]:
    """Seconds from START to COMPLETE of each run that led to an adapter, by what it made."""
    given = ("lineage", "--adapter", f"v1/{FIRST}", "--home", home.root, "--openlineage", path)
    assert delift(*given).status == 0
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = {}
    for start, complete in zip(events[::2], events[1::2], strict=True):
        first, last = (dt.datetime.fromisoformat(one["eventTime"]) for one in (start, complete))
        found[complete["outputs"][0]["name"]] = (last - first).total_seconds()
    return found


def test_openlineage_runs_last_as_long_as_their_dagster_steps(
    made: Home, tmp_path: Path, delift
) -> None:
    found = durations(made, tmp_path / "events.jsonl", delift)
    run = manifest_of(made.adapter("v1", FIRST)).run_id
    with dg.DagsterInstance.from_config(str(made.dagster)) as instance:
        (step,) = instance.get_run_step_stats(str(run), ["adapter"])
    assert step.start_time and step.end_time
    spent = step.end_time - step.start_time
    assert found[f"adapter:v1:{FIRST}"] == pytest.approx(spent, abs=1e-3)
    assert all(seconds > 0 for name, seconds in found.items() if name != "dataset:v1")


def test_openlineage_without_dagster_knows_how_long_training_took(
    copied: Home, tmp_path: Path, delift
) -> None:
    shutil.rmtree(copied.dagster)
    found = durations(copied, tmp_path / "events.jsonl", delift)
    seconds = read_training_log(copied.adapter("v1", FIRST)).seconds
    assert found[f"adapter:v1:{FIRST}"] == pytest.approx(seconds, abs=1e-3)
    assert found[f"report:v1:{FIRST}"] > 0
    assert not copied.dagster.exists()


def test_openlineage_events_connect_the_adapter_with_the_data(made: Home, tmp_path: Path) -> None:
    from delift_pipeline.lineage.artifacts import find_artifact
    from delift_pipeline.lineage.openlineage import openlineage_events

    report = find_artifact(made, f"report:v2:{SECOND}")
    assert report is not None
    done = [e for e in openlineage_events(made, [report]) if e["eventType"] == "COMPLETE"]
    made_by = {one["name"]: event for event in done for one in event["outputs"]}
    reached, queue = set(), [f"report:v2:{SECOND}"]
    while queue:
        name = queue.pop()
        reached.add(name)
        queue += [i["name"] for i in made_by[name]["inputs"] if i["name"] in made_by]
    wanted = {f"adapter:v2:{SECOND}", f"subset:v1:{FIRST}", "dataset:v1", "dataset:v2", "plan:v1"}
    assert wanted | {"kernel:v2:neighbours"} <= reached
    subset = made_by[f"subset:v2:{SECOND}"]
    assert subset["outputs"][0]["facets"]["schema"]["fields"][0] == {
        "name": "record_id",
        "type": "String",
    }
    assert subset["outputs"][0]["facets"]["dataSource"]["uri"] == f"file:subsets/v2/{SECOND}"
    run_id = manifest_of(made.subset("v2", SECOND)).run_id
    assert subset["run"]["facets"]["parent"]["run"]["runId"] == run_id


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "pass one of"),
        (("--record", "x", "--version", "v1"), "pass one of"),
        (("--adapter", "v1"), "write V/ARM"),
        (("--adapter", "../x/instruction_tuning.random"), "not a valid version name"),
        (("--adapter", "v1/instruction_tuning.none"), "has no adapter"),
        (("--record", "nobody"), "no record of any version"),
        (("--record", ""), "fits"),
        (("--version", "v9"), "no version 'v9'"),
    ],
)
def test_faulty_question_is_refused_in_one_line(
    made: Home, delift, arguments: tuple[str, ...], fault: str
) -> None:
    (line,) = delift("lineage", *arguments, "--home", made.root).faults
    assert fault in line
