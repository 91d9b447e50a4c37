"""Runs, metrics, datasets and models in MLflow."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.home import Home
from delift_pipeline.lineage import tracking_store
from delift_pipeline.lineage.tracked import log_adapter
from delift_pipeline.lineage.tracking import LONGEST_PARAM, Tracker, param_text
from delift_pipeline.lineage.tracking_store import local_uri

ARM = "instruction_tuning.delift-b10"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One store for all tests here; each takes its own version name."""
    return Tracker(Home.at(tmp_path_factory.mktemp("tracked") / "a home"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "deep").mkdir(parents=True)
    save_file({"w": np.arange(6, dtype=np.float32)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "deep" / "notes.txt").write_text("kept\n")
    return folder


class TestRuns:
    def test_an_arm_has_one_run_while_its_content_is_equal(self, tracker: Tracker) -> None:
        first = tracker.start_run("reuse", ARM, {"content": "a", "dagster_run_id": "1"}, {"n": 1})
        tracker.end_run(first)
        again = tracker.start_run("reuse", ARM, {"content": "a", "dagster_run_id": "2"}, {"m": 2})
        run = tracker.client.get_run(first)
        assert again == first
        assert run.info.status == "RUNNING"
        assert run.data.params == {"n": "1", "m": "2"}
        assert run.data.tags["delift.dagster_run_id"] == "2"

    def test_other_content_supersedes_the_run(self, tracker: Tracker) -> None:
        first = tracker.start_run("super", ARM, {"content": "a"})
        second = tracker.start_run("super", ARM, {"content": "b"})
        assert second != first
        assert tracker.client.get_run(first).data.tags["delift.superseded_by"] == second
        assert "delift.superseded_by" not in tracker.client.get_run(second).data.tags
        assert tracker.start_run("super", ARM, {"content": "b"}) == second

    def test_versions_and_arms_keep_apart(self, tracker: Tracker) -> None:
        ids = {
            tracker.start_run(version, arm, {"content": "a"})
            for version in ("apart-1", "apart-2")
            for arm in (ARM, "instruction_tuning.random")
        }
        assert len(ids) == 4

    def test_tags_lead_back(self, tracker: Tracker) -> None:
        tags = {"dagster_run_id": "d1", "manifest": "h1", "parent v1.2": 3, "absent": None}
        run = tracker.client.get_run(tracker.start_run("tags", ARM, tags, {"rank": 8}))
        found = run.data.tags
        expected = {
            "delift.version": "tags",
            "delift.arm": ARM,
            "delift.stage": "instruction_tuning",
            "delift.selector": "delift",
            "delift.dagster_run_id": "d1",
            "delift.manifest": "h1",
            "delift.parent v1.2": "3",
        }
        assert expected.items() <= found.items()
        assert run.info.run_name == f"tags {ARM}"
        assert len(found["delift.content"]) == 32
        assert "delift.absent" not in found

    def test_without_a_content_tag_the_parameters_are_the_content(self, tracker: Tracker) -> None:
        first = tracker.start_run("params", ARM, params={"rank": 8})
        assert tracker.start_run("params", ARM, params={"rank": 8}) == first
        assert tracker.start_run("params", ARM, params={"rank": 16}) != first

    def test_parameters_are_spread_out_and_cut(self, tracker: Tracker) -> None:
        long = "x" * 10_000
        params: dict[str, Any] = {
            "training": {"lr": 1e-4, "targets": ["q", "v"]},
            "odd name?": None,
            "long": long,
        }
        params |= {f"p{n}": n for n in range(250)}
        found = tracker.client.get_run(tracker.start_run("many", ARM, params=params)).data.params
        assert found["training.lr"] == "0.0001"
        assert found["training.targets"] == '["q", "v"]'
        assert found["odd name_"] == "None"
        assert len(found) == 254
        assert len(found["long"]) == LONGEST_PARAM

    def test_a_deleted_run_is_not_taken_again(self, tracker: Tracker) -> None:
        first = tracker.start_run("lost", ARM, {"content": "a"})
        assert tracker.exists(first)
        tracker.client.delete_run(first)
        assert not tracker.exists(first)
        assert not tracker.exists("0" * 32)
        assert tracker.start_run("lost", ARM, {"content": "a"}) != first

    def test_a_run_ends_finished_or_failed(self, tracker: Tracker) -> None:
        run_id = tracker.start_run("ended", ARM, {"content": "a"})
        for ok, status in ((True, "FINISHED"), (False, "FAILED")):
            tracker.end_run(run_id, ok)
            assert tracker.client.get_run(run_id).info.status == status

    def test_the_link_names_experiment_and_run(
        self, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = f"#/experiments/{tracker.experiment_id}/runs/abc"
        monkeypatch.delenv("DELIFT_MLFLOW_URL", raising=False)
        assert tracker.link("abc") == f"http://127.0.0.1:5000/{page}"
        monkeypatch.setenv("DELIFT_MLFLOW_URL", "https://track.example/ml/")
        assert tracker.link("abc") == f"https://track.example/ml/{page}"


def history(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    metrics = tracker.client.get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in metrics)


class TestMetrics:
    def test_metrics_keep_their_steps(self, tracker: Tracker) -> None:
        run_id = tracker.start_run("steps", ARM, {"content": "a"})
        for step in (0, 10):
            tracker.log_metrics(run_id, {"loss": 1.0 / (step + 1), "rouge L?": 0.5}, step)
        assert history(tracker, run_id, "loss") == [(0, 1.0), (10, 1 / 11)]
        assert tracker.client.get_run(run_id).data.metrics["rouge L_"] == 0.5

    def test_a_curve_is_logged_in_batches_and_only_once(self, tracker: Tracker) -> None:
        run_id = tracker.start_run("curve", ARM, {"content": "a"})
        curve = [float(np.float32(1 / (step + 1))) for step in range(2500)]
        points = [("loss", step, value) for step, value in enumerate(curve)]
        tracker.log_points(run_id, points[:100])
        tracker.log_points(run_id, points)
        tracker.log_points(run_id, points)
        assert history(tracker, run_id, "loss") == list(enumerate(curve))

    def test_a_curve_may_name_its_steps(self, tracker: Tracker) -> None:
        run_id = tracker.start_run("pairs", ARM, {"content": "a"})
        tracker.log_points(run_id, [("loss", 5, 2.0), ("loss", 10, 1.0)])
        assert history(tracker, run_id, "loss") == [(5, 2.0), (10, 1.0)]

    def test_what_is_not_finite_becomes_a_tag(self, tracker: Tracker) -> None:
        run_id = tracker.start_run("nan", ARM, {"content": "a"})
        tracker.log_metrics(run_id, {"loss": float("nan"), "good": 1})
        curve = (1.0, float("inf"), float("nan"))
        tracker.log_points(run_id, [("curve", *point) for point in enumerate(curve)])
        run = tracker.client.get_run(run_id)
        assert run.data.metrics == {"good": 1.0, "curve": 1.0}
        assert run.data.tags["delift.not_finite.loss"] == "nan"
        assert run.data.tags["delift.not_finite.curve"] == "inf at step 1"

    def test_a_lost_run_is_one_sentence(self, tracker: Tracker) -> None:
        with pytest.raises(DeliftError, match="run without tracking") as caught:
            tracker.log_metrics("0" * 32, {"loss": 1.0})
        assert "\n" not in str(caught.value)


def inputs_of(tracker: Tracker, run_id: str) -> list[Any]:
    inputs = tracker.client.get_run(run_id).inputs
    return list(inputs.dataset_inputs) if inputs else []


class TestThings:
    def test_data_sets_are_inputs_with_our_digests(
        self, tracker: Tracker, caplog: pytest.LogCaptureFixture
    ) -> None:
        run_id = tracker.start_run("data", ARM, {"content": "a"})
        frame = pl.DataFrame(
            {"record_id": ["a", "b"], "source_ids": [["1"], ["2", "3"]]},
        ).with_columns(copies=pl.lit(1, pl.UInt32))
        for name, context in (("pool", "pool"), ("subset", "training"), ("heldout", "evaluation")):
            digest = name[0] * 32
            for _ in range(2):
                tracker.log_dataset(run_id, frame, name, digest, context, f"datasets/{name}")
        inputs = inputs_of(tracker, run_id)
        found = {each.dataset.name: each for each in inputs}
        assert len(inputs) == 3
        assert found["subset"].dataset.digest == "s" * 32
        assert found["subset"].tags[0].value == "training"
        assert '"num_rows": 2' in str(found["pool"].dataset.profile)
        assert "source_ids" in str(found["pool"].dataset.schema)
        assert str(tracker.home.root) not in found["pool"].dataset.source
        assert caplog.records == []

    def test_an_adapter_is_a_logged_model_with_its_files(
        self, tracker: Tracker, adapter: Path, tmp_path: Path
    ) -> None:
        run_id = tracker.start_run("model", ARM, {"content": "a"}, {"rank": 8})
        model_id = log_adapter(tracker, run_id, adapter, f"model-{ARM}")
        assert log_adapter(tracker, run_id, adapter, f"model-{ARM}") == model_id
        (model,) = tracker.client.search_logged_models(
            [tracker.experiment_id], f"source_run_id = '{run_id}'"
        )
        assert (model.model_id, model.model_type, model.status) == (model_id, "adapter", "READY")
        assert model.name == "model-instruction_tuning_delift-b10"
        assert model.params == {"rank": "8"}
        assert model.tags["delift.arm"] == ARM
        stored = Path(model.artifact_location)
        names = sorted(p.relative_to(adapter) for p in adapter.rglob("*") if p.is_file())
        assert sorted(p.relative_to(stored) for p in stored.rglob("*") if p.is_file()) == names
        for name in names:
            assert (stored / name).read_bytes() == (adapter / name).read_bytes()
        outputs = tracker.client.get_run(run_id).outputs
        assert outputs is not None
        assert [output.model_id for output in outputs.model_outputs] == [model_id]

    def test_changed_files_are_another_model(self, tracker: Tracker, adapter: Path) -> None:
        run_id = tracker.start_run("models", ARM, {"content": "a"})
        first = log_adapter(tracker, run_id, adapter, "m")
        (adapter / "adapter_config.json").write_text('{"r": 4}')
        assert log_adapter(tracker, run_id, adapter, "m") != first

    def test_artifacts_keep_their_folder(self, tracker: Tracker, adapter: Path) -> None:
        run_id = tracker.start_run("files", ARM, {"content": "a"})
        tracker.log_artifacts(run_id, adapter, "subset")
        tracker.log_artifacts(run_id, adapter / "adapter_config.json", "one")
        listed = {file.path for file in tracker.client.list_artifacts(run_id, "subset")}
        assert "subset/adapter_model.safetensors" in listed
        assert [file.path for file in tracker.client.list_artifacts(run_id, "one")] == [
            "one/adapter_config.json"
        ]


FIRST_OPEN = """
import sys
from pathlib import Path
from delift_pipeline.lineage.tracked import log_adapter
from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.core.home import Home
tracker = Tracker(Home.at(sys.argv[1]))
run = tracker.start_run("v1", "instruction_tuning." + sys.argv[2], {"content": "a"})
tracker.log_points(run, [("loss", 0, 3.0), ("loss", 1, 2.0), ("loss", 2, 1.0)])
tracker.log_artifacts(run, Path(sys.argv[3]), "subset")
log_adapter(tracker, run, Path(sys.argv[3]), "m")
tracker.end_run(run)
"""


def test_four_processes_may_open_a_fresh_home_at_once(
    home: Home, adapter: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    command = [sys.executable, "-c", FIRST_OPEN, str(home.root)]
    workers = [
        subprocess.Popen(
            [*command, name, str(adapter)],
            cwd=outside,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("random", "full", "delift", "delift")
    ]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0], said
    assert said == [(b"", b"")] * 4
    tracker = Tracker(home)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert sorted(run.data.tags["delift.selector"] for run in runs) == ["delift", "full", "random"]
    assert all(run.data.metrics["loss"] == 1.0 for run in runs)
    assert list(outside.iterdir()) == []
    locations = [each.artifact_location for each in tracker.client.search_experiments()]
    assert all(place.startswith(str(home.mlflow / "artifacts")) for place in locations)


def test_a_moved_home_finds_its_artifacts(home: Home, adapter: Path, tmp_path: Path) -> None:
    # In a process of its own: MLflow remembers where a run's artifacts lie.
    command = [sys.executable, "-c", FIRST_OPEN, str(home.root), "full", str(adapter)]
    subprocess.run(command, check=True)
    shutil.move(home.root, tmp_path / "moved")
    tracker = Tracker(Home.at(tmp_path / "moved"))
    run_id = tracker.start_run("v1", "instruction_tuning.full", {"content": "a"})
    assert len(tracker.client.search_runs([tracker.experiment_id])) == 1
    assert len(tracker.client.list_artifacts(run_id, "subset")) == 3
    tracker.log_artifacts(run_id, adapter, "more")
    (model,) = tracker.client.search_logged_models([tracker.experiment_id])
    place = Path(model.artifact_location)
    assert (place / "deep" / "notes.txt").read_text() == "kept\n"
    assert not home.root.exists()


def test_a_store_whose_making_failed_is_made_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(database: Path, artifacts: Path) -> None:
        database.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking_store, "_migrate", fail)
        with pytest.raises(KeyboardInterrupt):
            Tracker(home)
    assert Tracker(home).experiment_id


def test_a_lazy_tracker_opens_nothing(home: Home) -> None:
    Tracker(home, lazy=True)
    assert not home.mlflow.exists()


def test_a_server_that_is_not_there_is_one_sentence(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(DeliftError, match=re.escape("http://127.0.0.1:9 failed")):
        Tracker(home, "http://127.0.0.1:9")


def test_the_uri_of_the_own_store_lies_in_the_home(home: Home) -> None:
    assert local_uri(home) == f"sqlite:///{home.root}/mlflow/mlflow.db"


def test_long_parameters_that_differ_at_the_end_stay_apart() -> None:
    one, other = (param_text(["x" * 2000, last]) for last in (1, 2))
    assert len(one) == len(other) == LONGEST_PARAM
    assert one != other
