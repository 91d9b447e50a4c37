"""Adapters in the registry of MLflow, in the home's own store and on a real server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from delift_pipeline.core.atomic import write_json, write_text
from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.evaluation.result import (
    SAMPLE_SCHEMA,
    Evaluation,
    summarise,
    write_evaluation,
)
from delift_pipeline.lineage.promotion import update_champion
from delift_pipeline.lineage.tracked import (
    TrackedArm,
    links_of,
    publish_card,
    read_tracking_note,
    registered_name,
)
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.records.versions import ingest
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.training.log import TrainingLog, weights_hash

READY_SECONDS = 90
MODEL = "tiny"
FINGERPRINT = "f" * 32


def name_of(tracker: Tracker) -> str:
    return registered_name(tracker.experiment, "things", "instruction_tuning", MODEL)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, "the server did not answer"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `mlflow server` on loopback that keeps artifacts itself."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"), "--workers", "1",
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **quiet}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        await_health(url, process)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with nothing in it: making one takes seconds, copying it none."""
    place = Home.at(tmp_path_factory.mktemp("fresh"))
    Tracker(place)
    return place.mlflow


@pytest.fixture(params=["home", pytest.param("server", marks=pytest.mark.slow)])
def tracker(request: pytest.FixtureRequest, home: Home) -> Tracker:
    """The home's own store, and a server."""
    if request.param == "home":
        shutil.copytree(request.getfixturevalue("fresh_store"), home.mlflow)
        return Tracker(home)
    return Tracker(home, request.getfixturevalue("server"), f"things-{home.root.parent.name}")


@pytest.fixture
def dataset(home: Home, records: pl.DataFrame, tmp_path: Path) -> DatasetVersion:
    """Twelve records, three of them held out."""
    file, heldout = tmp_path / "pool.parquet", tmp_path / "heldout.parquet"
    texts = records.select("instruction", "input", "output")
    texts[:9].write_parquet(file)
    texts[9:].write_parquet(heldout)
    ingest(home, file, version="v1", heldout=heldout, dataset="things")
    return load_version(home, "v1")


def evaluation(dataset: DatasetVersion, losses: list[float]) -> Evaluation:
    ids = dataset.heldout["record_id"]
    samples = pl.DataFrame(
        {"record_id": ids, "answer_loss": losses}, schema_overrides=SAMPLE_SCHEMA
    )
    missing = [pl.lit(None, kind).alias(n) for n, kind in SAMPLE_SCHEMA.items()]
    full = samples.with_columns(
        one for one, name in zip(missing, SAMPLE_SCHEMA, strict=True) if name not in samples.columns
    ).select(list(SAMPLE_SCHEMA))
    return Evaluation(summarise(full), full, {"records": full.height})


def make_base(home: Home, dataset: DatasetVersion, losses: list[float]) -> None:
    folder = home.base_report(dataset.version, FINGERPRINT)
    write_evaluation(folder, evaluation(dataset, losses), {"kind": "initial"})


def make_arm(
    home: Home, tracker: Tracker, dataset: DatasetVersion, arm: str, losses: list[float]
) -> TrackedArm:
    """An arm whose adapter is trained, tracked and evaluated, without a model."""
    version, name = dataset.version, f"instruction_tuning.{arm}"
    folder = home.adapter(version, name)
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.full((2, 2), sum(losses), np.float32)
    save_file({"lora": weights}, folder / "adapter_model.safetensors")
    write_text(folder / "README.md", f"# {name}\n")
    adapter = Manifest(kind="adapter", content_hash=weights_hash(folder))
    adapter.write(folder)
    write_json(home.subset(version, name) / "manifest.json", {})
    log = TrainingLog(
        method="lora", losses=[2.0, 1.0], learning_rates=[0.1, 0.1], steps=2, epochs=1, seconds=1,
        tokens=9, answer_tokens=3, trainable_parameters=4, parameters=8, records_used=3, seed=0,
    )  # fmt: skip
    run = TrackedArm(
        tracker=tracker, home=home, dataset=dataset, arm=name,
        settings=load_arms(home).arm(name).model_dump(mode="json"),
        records=dataset.pool[:3], parents={"model": FINGERPRINT}, model=MODEL, template="plain",
        dagster_run="d" * 32,
    )  # fmt: skip
    run.replay(adapter, log)
    report = home.report(version, name)
    measured = evaluation(dataset, losses)
    write_evaluation(report, measured, {"model": MODEL, "fingerprint": FINGERPRINT})
    parents = {f"adapter:{version}:{name}": adapter.content_hash}
    manifest = Manifest(
        kind="report",
        content_hash=measured.content_hash,
        parents=parents,
        fingerprint=FINGERPRINT,
    )
    manifest.write(report)
    return run


def holders(tracker: Tracker) -> tuple[str | None, str | None]:
    def holder(alias: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            found = tracker.client.get_model_version_by_alias(name_of(tracker), alias)
        except MlflowException:
            return None
        return found.tags["delift.arm"].split(".")[1]

    return holder("champion"), holder("challenger")


def settled(home: Home, tracker: Tracker, dataset: DatasetVersion) -> str:
    arms = {arm.name: arm.evaluation for arm in load_arms(home)}
    tuning = {name: options for name, options in arms.items() if name.startswith("instruction")}
    return update_champion(home, tracker, dataset, "instruction_tuning", MODEL, tuning)


def standings(tracker: Tracker) -> dict[str, str]:
    found = tracker.client.search_model_versions(f"name = '{name_of(tracker)}'")
    return {one.tags["delift.arm"].split(".")[1]: one.tags["delift.standing"] for one in found}


def test_evaluations_move_the_aliases(
    home: Home, tracker: Tracker, dataset: DatasetVersion
) -> None:
    make_base(home, dataset, [3.0, 3.0, 3.0])

    def evaluated(arm: str, losses: list[float]) -> str:
        make_arm(home, tracker, dataset, arm, losses)
        return settled(home, tracker, dataset)

    said = evaluated("delift", [1.0, 1.0, 1.0])
    assert holders(tracker) == (None, None)
    assert "has no champion" in said and "the random arm is not evaluated on v1 yet" in said
    said = evaluated("random", [2.0, 2.0, 2.0])
    assert holders(tracker) == ("delift", "random")
    assert (
        said == f"champion of {name_of(tracker)} is v1 instruction_tuning.delift (by answer_loss)"
    )
    evaluated("full", [0.5, 0.5, 0.5])
    assert holders(tracker) == ("full", "delift")
    evaluated("delift_trusted", [2.5, 2.5, 2.5])
    assert holders(tracker) == ("full", "delift")
    found = standings(tracker)
    assert (found["full"], found["delift"], found["random"]) == (
        "champion",
        "challenger",
        "eligible",
    )
    assert "the random arm is better by 0.5000" in found["delift_trusted"]
    # The random arm is trained again, and better than all: nobody else may stay champion.
    evaluated("random", [0.1, 0.1, 0.1])
    assert holders(tracker) == ("random", None)


def test_a_tie_leaves_the_registered_champion_where_it_is(
    home: Home, tracker: Tracker, dataset: DatasetVersion
) -> None:
    make_base(home, dataset, [3.0, 3.0, 3.0])
    make_arm(home, tracker, dataset, "random", [2.0, 2.0, 2.0])
    make_arm(home, tracker, dataset, "full", [1.0, 1.0, 1.0])
    settled(home, tracker, dataset)
    assert holders(tracker) == ("full", "random")
    # By name alone this one would come first.
    make_arm(home, tracker, dataset, "delift", [1.0, 1.0, 1.0])
    settled(home, tracker, dataset)
    assert holders(tracker) == ("full", "delift")


def test_the_same_adapter_is_one_version_and_another_is_a_second(
    home: Home, tracker: Tracker, dataset: DatasetVersion
) -> None:
    for losses in ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]):
        make_arm(home, tracker, dataset, "delift", losses)
    found = tracker.client.search_model_versions(f"name = '{name_of(tracker)}'")
    assert sorted(int(one.version) for one in found) == [1, 2]
    assert len({one.tags["delift.adapter"] for one in found}) == 2


def test_a_registered_version_leads_to_run_files_and_card(
    home: Home, tracker: Tracker, dataset: DatasetVersion, tmp_path: Path
) -> None:
    run = make_arm(home, tracker, dataset, "delift", [1.0, 1.0, 1.0])
    version = tracker.client.get_model_version(name_of(tracker), "1")
    assert version.run_id == run.run_id
    assert version.description == "# instruction_tuning.delift\n"
    write_text(run.folder / "README.md", "# with metrics\n")
    publish_card(tracker, run.folder)
    assert tracker.client.get_model_version(name_of(tracker), "1").description == "# with metrics\n"
    known = read_tracking_note(run.folder)
    assert known["registered"] == name_of(tracker) and known["registered_version"] == "1"
    links = links_of(run.folder, tracker)
    assert links["MLflow"].endswith(f"/runs/{run.run_id}")
    assert links["MLflow model"].endswith(f"/#/models/{name_of(tracker)}/versions/1")
    (tmp_path / "got").mkdir()
    place = tracker.client.download_artifacts(run.run_id, "adapter", str(tmp_path / "got"))
    assert (Path(place) / "README.md").read_text() == "# with metrics\n"
    weights = (Path(place) / "adapter_model.safetensors").read_bytes()
    assert weights == (run.folder / "adapter_model.safetensors").read_bytes()


def test_runs_lie_under_their_version_with_data_sets_and_the_way_back(
    home: Home, tracker: Tracker, dataset: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIFT_DAGSTER_URL", "http://127.0.0.1:3111/")
    one = make_arm(home, tracker, dataset, "delift", [1.0, 1.0, 1.0])
    other = make_arm(home, tracker, dataset, "random", [1.0, 1.0, 1.0])
    runs = [tracker.client.get_run(arm.run_id) for arm in (one, other)]
    (above,) = {run.data.tags["mlflow.parentRunId"] for run in runs}
    parent = tracker.client.get_run(above)
    assert (parent.info.run_name, parent.info.status) == ("v1", "FINISHED")
    assert parent.data.tags["delift.data_version"] == dataset.manifest.content_hash
    tags: dict[str, Any] = runs[0].data.tags
    assert tags["delift.dagster_run_id"] == "d" * 32
    assert f"http://127.0.0.1:3111/runs/{'d' * 32}" in tags["mlflow.note.content"]
    inputs = runs[0].inputs
    assert inputs is not None
    digests = {given.dataset.name: given.dataset.digest for given in inputs.dataset_inputs}
    assert digests["v1/pool"] == dataset.manifest.details["pool_hash"]
    assert digests["v1/heldout"] == dataset.manifest.details["heldout_hash"]


def test_a_lost_registry_is_one_sentence(
    home: Home, dataset: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker(home, "http://127.0.0.1:9", lazy=True)
    with pytest.raises(DeliftError, match="run without tracking") as caught:
        settled(home, away, dataset)
    assert "\n" not in str(caught.value)
