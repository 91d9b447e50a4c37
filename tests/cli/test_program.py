"""The program as a whole: its help, its exit statuses, and what a wrong command line says."""

from typing import Any

import pytest

COMMANDS = ("demo", "ingest", "select", "score", "prompt", "run", "ui")


def test_help_lists_the_commands(program: Any) -> None:
    answer = program("--help")
    assert answer.status == 0
    assert all(f"\n  {command} " in answer.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(delift: Any, command: str) -> None:
    answer = delift(command, "--help")
    assert answer.status == 0
    assert "--home" in answer.out or command == "prompt"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bogus",), "bogus"),
        (("select", "x.jsonl", "--model", "demo"), "--budget"),
        (("select", "x.jsonl", "--model", "demo", "--budget", "1", "--bogus"), "--bogus"),
        (
            ("select", "x.jsonl", "--model", "demo", "--budget", "1", "--option", "eta"),
            "NAME=VALUE",
        ),
        (("ingest", "x.jsonl", "--version", "v", "--column", "instruction"), "FIELD=COLUMN"),
        (("ui", "--port", "70000"), "--port"),
        (("run",), "--version"),
    ],
)
def test_a_wrong_command_line_ends_with_two_and_one_sentence(
    delift: Any, arguments: tuple[str, ...], said: str
) -> None:
    (fault,) = delift(*arguments).faults
    assert said in fault


def test_a_wrong_command_line_has_no_traceback_as_a_program(program: Any) -> None:
    (fault,) = program("bogus").faults
    assert "bogus" in fault


def test_a_failure_of_the_work_ends_with_one(delift: Any, files: Any, tmp_path: Any) -> None:
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    common = ("--model", "demo", "--template", "world", "--threads", 1, "--home", tmp_path / "home")
    select = ("select", files.first_pool, "--budget", 3, "--selector", "random", *common)
    assert delift(*select, "--out", blocker / "chosen.jsonl").status == 0
    ingest = ("ingest", files.first_pool, "--version", "v1", "--home", tmp_path / "home")
    assert delift(*ingest).status == 0
    (tmp_path / "home" / "datasets" / "v1" / "pool.parquet").write_bytes(b"damaged")
    child = ("ingest", files.second_pool, "--version", "v2", "--parent", "v1")
    answer = delift(*child, "--home", tmp_path / "home")
    assert answer.status == 1
    assert answer.out == "" and "Traceback" not in answer.err
    assert "pool.parquet" in answer.err
