"""Where results go: a file, a link, a pipe, a device, standard output; refused before any work."""

import errno
import io
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

MODEL = ("--model", "demo", "--template", "world", "--threads", 1)


@pytest.fixture
def select(delift: Any, files: Any, scores: Path) -> Any:
    """Choose three records at random; no model is run."""

    def call(*arguments: object, file: Path = files.first_pool) -> Any:
        chosen = ("--selector", "random", "--budget", 3, "--home", scores)
        return delift("select", file, *MODEL, *chosen, *arguments)

    return call


@pytest.fixture
def chosen(select: Any, tmp_path: Path) -> str:
    """What a plain file of three chosen records holds."""
    assert select("--out", tmp_path / "expected.jsonl").status == 0
    return (tmp_path / "expected.jsonl").read_text("utf-8")


def read_in_background(path: Path, into: list[str]) -> threading.Thread:
    reader = threading.Thread(target=lambda: into.append(path.read_text("utf-8")), daemon=True)
    reader.start()
    return reader


def test_a_link_stays_and_what_it_names_is_replaced(
    select: Any, chosen: str, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    assert select("--out", link).status == 0
    assert link.is_symlink() and target.read_text("utf-8") == chosen
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["target.jsonl"]


@pytest.mark.parametrize("option", ["--out", "--why"])
def test_a_named_pipe_is_written_through(
    select: Any, chosen: str, tmp_path: Path, option: str
) -> None:
    pipe, got = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = read_in_background(pipe, got)
    other = {"--out": "--why", "--why": "--out"}[option]
    answer = select(option, pipe, other, tmp_path / "other.jsonl")
    is_pipe = pipe.is_fifo()
    if not is_pipe:  # nobody would write to it any more
        pipe.unlink()
    assert answer.status == 0 and is_pipe
    reader.join(timeout=10)
    written = (tmp_path / "other.jsonl").read_text("utf-8") if option == "--why" else got[0]
    assert written == chosen and len(got[0].splitlines()) >= 3


def test_a_device_stays_a_device(select: Any, tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device")
    answer = select("--out", device)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert answer.status in (0, 1)  # a file system mounted `nodev` opens no device


def test_a_full_device_is_one_sentence_and_nothing_is_replaced(select: Any, tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    answer = select("--out", link)
    assert answer.status == 1 and link.is_symlink()
    (line,) = [line for line in answer.err.splitlines() if str(link) in line]
    assert "disk is full" in line and "Traceback" not in answer.err


@pytest.mark.parametrize("option", ["--out", "--why"])
def test_a_disk_that_fills_up_leaves_the_former_file_whole(
    select: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    place, real = tmp_path / "there.jsonl", Path.write_bytes
    place.write_text("before")

    def filling(path: Path, data: bytes) -> int:
        if path.name.endswith(place.name) and len(data) > 100:
            real(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: filling(path, text.encode()))
    plain = ("--out", tmp_path / "plain.jsonl") if option == "--why" else ()
    answer = select(*plain, option, place)
    assert answer.status == 1 and answer.out == ""
    assert answer.err.splitlines()[-1].startswith(f"{place}: the disk is full")
    assert place.read_text("utf-8") == "before"
    assert {path.name for path in tmp_path.iterdir()} <= {"there.jsonl", "plain.jsonl"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_dash_is_standard_output_in_the_format_of_the_input(
    select: Any, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source, pool = tmp_path / f"pool{suffix}", pl.read_ndjson(files.first_pool)
    {".jsonl": pool.write_ndjson, ".json": pool.write_json, ".csv": pool.write_csv}[suffix](source)
    answer = select("--out", "-", file=source)
    assert answer.status == 0 and "3 of 24 records" in answer.err
    read = {".jsonl": pl.read_ndjson, ".json": pl.read_json, ".csv": pl.read_csv}[suffix]
    assert read(io.StringIO(answer.out)).height == 3
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_json_and_results_do_not_mix_on_standard_output(select: Any) -> None:
    (fault,) = select("--out", "-", "--json").faults
    assert fault.startswith("--out: ") and "--json" in fault


@pytest.mark.parametrize("kind", ["folder", "below a file", "circle", "long name", "read-only"])
@pytest.mark.parametrize("option", ["--out", "--why"])
def test_what_cannot_be_written_is_refused_before_anything_is_scored(
    delift: Any,
    files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    kind: str,
) -> None:
    place = tmp_path / "here"
    if kind == "folder":
        place.mkdir()
    elif kind == "below a file":
        place.write_text("before")
        place = place / "out.jsonl"
    elif kind == "circle":
        place.symlink_to(place)
    elif kind == "long name":
        place = tmp_path / ("n" * 250)
    else:
        place = read_only(tmp_path / "sealed", monkeypatch) / "out.jsonl"
    home = tmp_path / "home"
    plain = ("--out", tmp_path / "plain.jsonl") if option == "--why" else ()
    arguments = ("--selector", "delift", "--budget", 3, "--home", home, *plain, option, place)
    (fault,) = delift("select", files.first_pool, *MODEL, *arguments).faults
    assert fault.startswith(f"{option}: ") and str(place) in fault
    assert not home.exists() and not (tmp_path / "plain.jsonl").exists()


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing can be made, not by root either."""
    folder.mkdir()
    real = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and folder in Path(os.fsdecode(path)).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))
        return real(path, flags, *rest, **more)

    def opening(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not isinstance(file, int) and set(mode) & set("wax"):
            os.close(refusing(file, os.O_CREAT | os.O_WRONLY))
        return real_open(file, mode, *rest, **more)

    real_open = io.open
    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(io, "open", opening)
    return folder


@pytest.mark.parametrize("kind", ["a file", "below a file", "read-only"])
@pytest.mark.parametrize("command", ["ingest", "select", "score", "run", "ui"])
def test_a_home_that_cannot_be_written_is_one_sentence(
    delift: Any,
    files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    kind: str,
) -> None:
    home = tmp_path / "home"
    if kind == "read-only":
        read_only(home, monkeypatch)
    else:
        home.write_text("before")
    home = home / "deeper" if kind == "below a file" else home
    arguments = {
        "ingest": (files.first_pool, "--version", "v1"),
        "select": (
            files.first_pool, *MODEL, "--selector", "delift", "--budget", 3,
            "--out", tmp_path / "o.jsonl",
        ),
        "score": (files.first_pool, *MODEL, "--out", tmp_path / "o.parquet"),
        "run": ("--version", "v1"),
        "ui": (),
    }[command]  # fmt: skip
    (fault,) = delift(command, *arguments, "--home", home).faults
    assert fault.startswith("--home: ") and str(tmp_path / "home") in fault


def test_a_recipe_is_written_through_a_link_and_to_standard_output(
    delift: Any, tmp_path: Path
) -> None:
    source = tmp_path / "gsm8k.jsonl"
    source.write_text('{"question": "1 + 1?", "answer": "two #### 2"}\n')
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    assert delift("recipe", "gsm8k", "--source", source, "--out", link).status == 0
    assert link.is_symlink() and "two" in target.read_text("utf-8")
    answer = delift("recipe", "gsm8k", "--source", source, "--out", "-")
    assert answer.out == target.read_text("utf-8") and "1 records" in answer.err


def test_the_current_folder_can_be_read_into_standard_output(
    select: Any, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(files.first_pool, tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = select("--out", "-", file=Path("."))
    assert answer.status == 0 and len(answer.out.splitlines()) == 3


def test_faults_of_a_stream_are_listed_in_a_file_named_after_the_input(
    select: Any, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = files.first_pool.read_text("utf-8")
    (tmp_path / "own.jsonl").write_text(text + '{"instruction": "i", "output": ""}\n', "utf-8")
    (tmp_path / "faults.jsonl").write_text("of another program")
    monkeypatch.chdir(tmp_path)
    assert select("--out", "-", "--skip-bad", file=Path("own.jsonl")).status == 0
    assert (tmp_path / "faults.jsonl").read_text() == "of another program"
    assert len((tmp_path / "own.jsonl.faults.jsonl").read_text().splitlines()) == 1
