"""200 versions of 50 records and 40 arms, each arm selected, trained and evaluated on each."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.operations.catalog import refresh_catalog
from tests.operations.histories import (
    add_adapter,
    add_report,
    add_subset,
    add_version,
    copy_cell,
    records_of,
    unsynced,
)

VERSIONS, RECORDS, ARMS = 200, 50, 40
DATASETS = 10
ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"instruction_tuning.random-{i:02d}" for i in range(ARMS)]
UNIT = "import polars, duckdb, pydantic"
UNIT_SECONDS = 0.25
"""Processor seconds of `UNIT` on a quiet two-core machine; bounds are scaled by what it is here."""

# One process runs all of it: its tests share one home, in order.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home.at(tmp_path_factory.mktemp("large") / "home")
    with unsynced():
        for number in range(VERSIONS):
            chain, place = divmod(number, VERSIONS // DATASETS)
            version, parent = f"d{chain}-v{place}", f"d{chain}-v{place - 1}"
            names = [f"{chain} record {place + i}" for i in range(RECORDS)]
            add_version(home, version, names, [parent] if place else [])
            add_subset(home, version, NAMES[0], names[::4])
            add_adapter(home, version, NAMES[0], None)
            add_report(home, version, NAMES[0])
            copy_cell(home, version, NAMES[0], NAMES[1:])
    arms = "\n".join(f"  {name}: {{}}" for name in NAMES)
    home.arms_file.write_text(
        f"defaults: {{training: {{preset: demo}}}}\narms:\n{arms}\n", encoding="utf-8"
    )
    refresh_catalog(home)
    yield home


@pytest.fixture
def slower(large: Home) -> float:
    """How many times as long as on a quiet machine things take just now, at least 1."""
    return max(1.0, min(seconds_of(large, "-c", UNIT)[0] for _ in range(3)) / UNIT_SECONDS)


def seconds_of(home: Home, *arguments: str) -> tuple[float, str]:
    """Processor seconds of a program of its own, start included, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ
        | {"DELIFT_HOME": str(home.root), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, done.stdout


DELIFT = ("-m", "delift_pipeline.cli.main")
LOAD = "from delift_pipeline.definitions import defs; defs.get_repository_def()"
TICK = """
import dagster as dg
from delift_pipeline.orchestration.sensors import new_dataset_version_sensor
from resources import StoreResource
with dg.DagsterInstance.ephemeral() as instance:
    import os
    started = os.times()
    context = dg.build_sensor_context(instance=instance)
    result = new_dataset_version_sensor(context, store=StoreResource())
    ended = os.times()
    print(len(result.run_requests), ended.user + ended.system - started.user - started.system)
"""


def test_definitions_load_in_ten_seconds(large: Home, slower: float) -> None:
    spent, _ = seconds_of(large, "-c", LOAD)
    assert spent < 10 * slower


def test_sensor_ticks_in_five_seconds(large: Home, slower: float) -> None:
    _, said = seconds_of(large, "-c", TICK)
    requests, spent = said.split()
    assert int(requests) == VERSIONS
    assert float(spent) < 5 * slower


def test_lineage_answers_in_two_seconds(large: Home, slower: float) -> None:
    record = records_of(["3 record 20"])["record_id"][0]
    for asked in (
        ("--adapter", f"d3-v19/{NAMES[7]}"),
        ("--record", record),
        ("--version", "d3-v19"),
    ):
        spent, said = seconds_of(large, *DELIFT, "lineage", *asked)
        assert said.strip()
        assert spent < 2 * slower, asked


def test_query_over_everything_answers_in_two_seconds(large: Home, slower: float) -> None:
    for sql, rows in (
        ("SELECT count(*) FROM reasons", VERSIONS * ARMS * RECORDS),
        ("SELECT count(*) FROM trained_on", VERSIONS * ARMS * len(range(0, RECORDS, 4))),
        ("SELECT count(*) FROM metrics", VERSIONS * ARMS),
        ("SELECT count(*) FROM lineage WHERE kind = 'adapter'", VERSIONS * ARMS),
    ):
        spent, said = seconds_of(large, *DELIFT, "query", sql, "--csv")
        assert said.split() == ["count_star()", str(rows)]
        assert spent < 2 * slower, sql
