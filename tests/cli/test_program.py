"""The program as a whole: its help, its exit statuses, and what a wrong command line says."""

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline import __version__
from delift_pipeline.cli import main, operations

COMMANDS = ("demo", "ingest", "select", "score", "prompt", "run", "ui")


def test_help_lists_the_commands(program: Any) -> None:
    answer = program("--help")
    assert answer.status == 0
    assert all(f"\n  {command} " in answer.out for command in COMMANDS)


@pytest.mark.parametrize("group", [(), ("bench",)])
def test_help_describes_every_command_in_a_whole_sentence(
    monkeypatch: pytest.MonkeyPatch, delift: Any, group: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, _, commands = delift(*group, "--help").out.partition("Commands:\n")
    assert commands and all(line.endswith(".") for line in commands.splitlines())
    assert "..." not in commands


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


@pytest.fixture
def catalog_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `delift catalog` end in an exception."""

    def arrange(error: BaseException) -> None:
        def fail(home: Any, **_: Any) -> Any:
            raise error

        monkeypatch.setattr(operations, "_open_home", fail)

    return arrange


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/home/x/catalog.duckdb"),
            "permission",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/home/x"), "read-only"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit"),
        (RuntimeError("parquet: IO error: No space left on device (os error 28)"), "disk is full"),
        (KeyError("pool"), "--debug"),
        (AssertionError(), "--debug"),
    ],
)
def test_any_error_is_one_sentence_and_a_traceback_only_where_asked_for(
    delift: Any, catalog_raises: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    catalog_raises(error)
    plain = delift("catalog")
    assert plain.status == 1 and plain.out == ""
    (line,) = plain.err.splitlines()
    assert said in line
    for arguments in (("--debug", "catalog"), ("catalog", "--debug")):
        shown = delift(*arguments)
        assert shown.status == 1
        assert "Traceback" in shown.err and shown.err.splitlines()[-1] == line
    assert "Traceback" not in delift("catalog").err
    monkeypatch.setenv("DELIFT_DEBUG", "1")
    assert "Traceback" in delift("catalog").err


def test_an_interrupt_has_its_own_status_and_says_nothing(delift: Any, catalog_raises: Any) -> None:
    catalog_raises(KeyboardInterrupt())
    answer = delift("catalog")
    assert (answer.status, answer.out) == (130, "") and "Traceback" not in answer.err


def test_the_version_is_printed(delift: Any) -> None:
    answer = delift("--version")
    assert (answer.status, answer.out) == (0, f"delift {__version__}\n")


def test_a_reader_that_ends_early_is_no_error(
    delift: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    closed = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", closed)
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    status = main.run(["recipe", "--json"])
    assert (status, errors.getvalue()) == (1, "")
    with pytest.raises(BrokenPipeError):
        closed.close()


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_an_output_that_lacks_a_character_gets_an_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_flag: tuple[str, ...]
) -> None:
    why = tmp_path / "why.jsonl"
    why.write_text(
        '{"record_id": "a", "source_id": "1", "rank": 1, "gain": 1.0, "covers": [], "trust": null,'
        ' "near_duplicates": [], "text": "grün", "suspected": null, "self_share": null}\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the program sets it for good
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with pytest.raises(SystemExit) as ended:
        main.main(["explain", "--record", "a", "--why", str(why), *json_flag])
    assert ended.value.code == 0
    escape = b"gr\\u00fcn" if json_flag else b"gr\\xfcn"
    assert escape in written.getvalue()
