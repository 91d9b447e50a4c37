"""`delift bench selection` on small kernels: the promised keys, and the other library's ranking."""

import json

import pytest

from delift_pipeline.bench.selection import CASES, select_cases
from delift_pipeline.cli.main import run

KEYS = {
    "n",
    "kernel",
    "objective",
    "optimizer",
    "budget",
    "seconds",
    "peak_rss_mib",
    "value",
    "ratio_vs_submodlib",
    "ratio_vs_apricot",
}


def test_the_rows_have_the_promised_keys_and_agree_with_submodlib(capsys) -> None:
    assert run(["bench", "selection", "--quick", "--repeats", "1", "--json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)["rows"]
    assert [(row["n"], row["kernel"]) for row in rows] == [
        (300, "dense"),
        (300, "dense"),
        (3_000, "sparse"),
    ]
    assert all(set(row) >= KEYS for row in rows)
    assert all(row["seconds"] > 0 and row["peak_rss_mib"] > 0 for row in rows)
    beside = rows[0]
    assert beside["same_ranking"] and beside["ratio_vs_submodlib"] > 0
    assert beside["value_vs_submodlib"] == pytest.approx(1, rel=1e-6)
    assert rows[2]["ratio_vs_submodlib"] is None
    assert "300 records, dense, fl, lazy" in said.err


def test_cases_are_chosen_by_what_they_are_called(capsys) -> None:
    assert {case.n for case in select_cases(False, False, ["5000"])} == {5_000}
    assert not any(case.n == 10_000_000 for case in CASES)
    assert select_cases(True, False, ["sparse"])[-1].n == 10_000_000
    assert run(["bench", "selection", "--only", "7"]) == 2
    assert "no case is called 7" in capsys.readouterr().err
