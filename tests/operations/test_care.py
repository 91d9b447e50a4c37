import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.operations.doctor import Finding, examine
from delift_pipeline.operations.gc import collect_garbage

TRUSTED = "instruction_tuning.delift_trusted"


def states(home: Home) -> dict[str, str]:
    return {finding.name: finding.state for finding in examine(home, self_test=False)}


def test_whole_home_has_nothing_broken(made: Home) -> None:
    found = states(made)
    assert "broken" not in found.values()
    assert {"python", "packages", "gpu", "disk", "arms", "store", "databases", "ports"} <= set(
        found
    )


def test_doctor_tests_scoring_and_selection(made: Home, delift) -> None:
    said = delift("doctor", "--home", made.root, "--json").json
    (test,) = [one for one in said["findings"] if one["name"] == "self-test"]
    assert test["note"].startswith("3 of 6 records scored and selected")
    assert said["ok"] is True


def test_doctor_names_a_damaged_manifest_and_ends_with_one(copied: Home, delift) -> None:
    (copied.subset("v1", TRUSTED) / "manifest.json").write_text("{", encoding="utf-8")
    answer = delift("doctor", "--no-self-test", "--home", copied.root)
    assert answer.status == 1
    (line,) = [line for line in answer.out.splitlines() if line.startswith("broken  store")]
    assert "manifest is damaged" in line and "run its version again" in line


def test_doctor_names_a_damaged_database_arms_file_and_catalog(copied: Home) -> None:
    (copied.mlflow / "mlflow.db").write_bytes(b"not a database at all" * 100)
    copied.arms_file.write_text("arms: []", encoding="utf-8")
    copied.catalog.write_bytes(b"nothing")
    found = states(copied)
    assert found["databases"] == found["arms"] == "broken"
    assert found["catalog"] == "warning"


@pytest.fixture
def database(home: Home) -> Path:
    """An MLflow database of a home, with one table."""
    home.mlflow.mkdir(parents=True)
    with closing(sqlite3.connect(home.mlflow / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.commit()
    return home.mlflow / "mlflow.db"


def database_finding(home: Home) -> Finding:
    (found,) = [one for one in examine(home, self_test=False) if one.name == "databases"]
    return found


def test_doctor_says_who_uses_a_locked_database_and_leaves_it(home: Home, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        found = database_finding(home)
    assert found.state == "warning" and f"in use by process {os.getpid()}" in found.note
    assert "aside" not in found.todo
    assert database_finding(home).state == "ok"


def test_doctor_calls_no_database_damaged_that_it_may_not_open(
    home: Home, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    found = database_finding(home)
    assert found.state == "broken" and "mlflow.db cannot be opened" in found.note
    assert "right to read and write" in found.todo and "aside" not in found.todo


def test_doctor_finds_damage_inside_a_database(home: Home, database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200)
    found = database_finding(home)
    assert found.state == "broken" and "is damaged" in found.note and "move" in found.todo


def test_doctor_says_who_uses_a_locked_catalog(home: Home) -> None:
    home.root.mkdir(parents=True)
    program = (
        "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, home.catalog],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        (found,) = [one for one in examine(home, self_test=False) if one.name == "catalog"]
        assert holder.stdin is not None
        holder.stdin.close()
    assert found.state == "warning" and f"in use by process {holder.pid}" in found.note


def test_doctor_sees_a_port_in_use(made: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr("delift_pipeline.operations.doctor.PORTS", {"Dagster": port})
        (found,) = [one for one in examine(made, self_test=False) if one.name == "ports"]
    assert found.state == "warning" and str(port) in found.note


def test_doctor_names_a_model_folder_that_has_moved(home: Home, tmp_path: Path) -> None:
    home.root.mkdir(parents=True)
    (home.root / "models.json").write_text(f'{{"local:mine-1": "{tmp_path}"}}', encoding="utf-8")
    assert states(home)["models"] == "ok"
    (home.root / "models.json").write_text('{"local:mine-1": "/gone"}', encoding="utf-8")
    (found,) = (one for one in examine(home, self_test=False) if one.name == "models")
    assert found.state == "warning" and "/gone" in found.note and "models.json" in found.todo


def test_nothing_of_a_whole_home_is_waste(made: Home) -> None:
    assert collect_garbage(made, minimum_age=0).waste == []


def test_leftovers_are_listed_and_removed_only_when_asked(copied: Home, delift) -> None:
    old = copied.root / "subsets" / "v1" / ".tmp-0000-left"
    old.mkdir()
    (old / "part").write_bytes(b"x" * 1000)
    past = time.time() - 7200
    os.utime(old, (past, past))
    (copied.root / "kernels" / "gone" / ("0" * 32)).mkdir(parents=True)
    (copied.root / "scores" / ("f" * 32) / "shards").mkdir(parents=True)
    paths = [one.path for one in collect_garbage(copied).waste]
    assert paths == ["kernels/gone", f"scores/{'f' * 32}", "subsets/v1/.tmp-0000-left"]
    assert old.exists()
    said = delift("gc", "--apply", "--home", copied.root, "--json").json
    assert said["bytes"] == 1000 and said["applied"] is True
    assert collect_garbage(copied).waste == []
    assert not old.exists() and copied.subset("v1", TRUSTED).is_dir()


def test_young_temporary_file_is_left_alone(copied: Home) -> None:
    (copied.root / ".tmp-0000-now").write_text("in flight")
    assert collect_garbage(copied).waste == []


def test_what_a_live_manifest_names_is_never_waste(copied: Home) -> None:
    """v2 goes on from v1's adapter: it stays although v1 itself is gone."""
    shutil.rmtree(copied.dataset("v1"))
    collect_garbage(copied, apply=True, minimum_age=0)
    assert copied.adapter("v1", TRUSTED).is_dir()
    assert copied.subset("v1", TRUSTED).is_dir()
    assert not copied.report("v1", TRUSTED).exists()


def test_kernel_that_no_subset_was_chosen_from_is_waste_and_its_scores_are_not(
    copied: Home,
) -> None:
    other = copied.kernel("v1", "a" * 32)
    Manifest(kind="kernel", content_hash="x", fingerprint="a" * 32, details={"blocks": {}}).write(
        other
    )
    (copied.scores("a" * 32) / "shards").mkdir(parents=True)
    assert [one.path for one in collect_garbage(copied).waste] == [f"kernels/v1/{'a' * 32}"]


def test_no_file_of_a_home_names_the_place_it_was_made_at(made: Home) -> None:
    """Dagster's and MLflow's own databases apart: the one names no file, the other is rewritten."""
    place = str(made.root).encode()
    files = [path for path in made.root.rglob("*") if path.is_file()]
    inside = [path.relative_to(made.root) for path in files if place in path.read_bytes()]
    assert [path for path in inside if path.parts[0] not in ("dagster", "mlflow")] == []


def test_moved_home_finds_everything_again(copied: Home, tmp_path: Path, delift, program) -> None:
    moved = Home.at(tmp_path / "elsewhere" / "moved")
    moved.root.parent.mkdir()
    shutil.move(copied.root, moved.root)
    said = program("run", "--version", "v1", "--arm", TRUSTED, "--home", moved.root, "--json").json
    assert said["pairs_scored"] == 0
    before = json.loads((moved.adapter("v1", TRUSTED) / "manifest.json").read_text("utf-8"))
    lineage = delift("lineage", "--adapter", f"v1/{TRUSTED}", "--home", moved.root, "--json").json
    assert lineage["adapter"]["content_hash"] == before["content_hash"]
    assert lineage["notes"] == []
    assert delift("verify", "--home", moved.root).status == 0
    rows = delift(
        "query", "SELECT count(*) AS n FROM versions", "--home", moved.root, "--json"
    ).json
    assert rows == [{"n": 2}]
