"""`delift select` under rules: tokens, auto, quotas, caps, pins and exclusions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

MODEL = ("--model", "demo", "--template", "world", "--threads", 1)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def select(delift: Any, files: Any, scores: Path, tmp_path: Path) -> Any:
    """Select from the first pool into `o.jsonl`; scores are kept between tests."""

    def call(*arguments: object, file: Path = files.first_pool) -> Any:
        out = ("--out", tmp_path / "o.jsonl", "--home", scores, "--json")
        return delift("select", file, *MODEL, *out, *arguments)

    return call


def tokens_of(row: dict[str, Any]) -> int:
    from delift_pipeline.scoring.model import load_tokenizer
    from delift_pipeline.scoring.model_files import model_folder
    from delift_pipeline.scoring.options import ModelOptions

    options = ModelOptions(model="demo")
    tokenizer = load_tokenizer(model_folder(options), options)
    texts = [row[name] for name in ("instruction", "input", "output")]
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def test_the_default_selector_is_delift_trusted(select: Any) -> None:
    report = select("--budget", 5).json
    assert report["selector"] == "delift_trusted"
    assert report["pairs_scored"] + report["pairs_reused"] < 24 * 24


@pytest.mark.parametrize("selector", ["delift_trusted", "delift", "random"])
def test_a_budget_in_tokens_is_counted_by_the_model(
    select: Any, tmp_path: Path, selector: str
) -> None:
    report = select("--budget", "100tokens", "--selector", selector).json
    spent = sum(tokens_of(row) for row in rows(tmp_path / "o.jsonl"))
    assert report["tokens"] == spent
    assert 0 < spent <= 100 and report["selected"] == len(rows(tmp_path / "o.jsonl"))


def test_auto_stops_where_picks_no_longer_pay(select: Any, tmp_path: Path) -> None:
    why = tmp_path / "w.jsonl"
    report = select("--budget", "auto:0.2", "--selector", "delift", "--why", why).json
    gains = [row["gain"] for row in rows(why) if "rank" in row]
    assert 1 < report["selected"] == len(gains) < 24
    assert min(gains) >= 0.2 * gains[0]
    assert 1 <= report["knee"] <= len(gains)
    everything = select("--budget", 24, "--selector", "delift", "--why", why).json
    assert everything["selected"] == 24
    after = [row["gain"] for row in rows(why) if "rank" in row][len(gains)]
    assert after < 0.2 * gains[0]


def test_quotas_and_caps_hold(select: Any, tmp_path: Path) -> None:
    free = select("--budget", 8).json
    assert free["selected"] == 8
    assert max(Counter(row["task"] for row in rows(tmp_path / "o.jsonl")).values()) > 1
    assert select("--budget", 5, "--cap", "task:1").json["selected"] == 5
    assert max(Counter(row["task"] for row in rows(tmp_path / "o.jsonl")).values()) == 1
    some = rows(tmp_path / "o.jsonl")[-1]["task"]
    assert select("--budget", 8, "--quota", f"task={some}:0.25..").json["selected"] == 8
    assert sum(row["task"] == some for row in rows(tmp_path / "o.jsonl")) >= 2


def test_quotas_on_a_column_that_only_the_file_has(select: Any, files: Any, tmp_path: Path) -> None:
    lines = rows(files.first_pool)
    marked = tmp_path / "marked.jsonl"
    text = (json.dumps({**line, "hard": k % 3}) + "\n" for k, line in enumerate(lines))
    marked.write_text("".join(text), encoding="utf-8")
    assert select("--budget", 6, "--quota", "hard:2..2", file=marked).status == 0
    assert Counter(row["hard"] for row in rows(tmp_path / "o.jsonl")) == {0: 2, 1: 2, 2: 2}


def test_pins_and_exclusions_by_id_and_by_file(select: Any, files: Any, tmp_path: Path) -> None:
    lines = rows(files.first_pool)
    out = tmp_path / "out-of-it.jsonl"
    out.write_text("".join(json.dumps(row) + "\n" for row in lines[:10]), encoding="utf-8")
    pinned = tmp_path / "in-it.jsonl"
    pinned.write_text(json.dumps(lines[12]) + "\n", encoding="utf-8")
    command = ("--exclude", out, "--pin", pinned, "--pin", lines[11]["id"])
    assert select("--budget", 6, *command, "--exclude", lines[10]["id"]).status == 0
    names = [row["id"] for row in rows(tmp_path / "o.jsonl")]
    assert set(names[:2]) == {lines[11]["id"], lines[12]["id"]} and len(names) == 6
    assert not set(names) & {row["id"] for row in lines[:11]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--quota", "task:0.1..x"), "--quota: 'task:0.1..x'"),
        (("--quota", "colour:1..2"), "no row of the file has this column"),
        (("--quota", "task=nowhere:1.."), "no record has task 'nowhere'"),
        (("--quota", "task:20.."), "quota: "),
        (("--cap", "source:2"), "at most 2 records of 5"),
        (("--cap", "source"), "--cap: 'source'"),
        (("--pin", "nobody"), "pin: 'nobody' is not in the pool"),
        (("--exclude", "nobody"), "exclude: 'nobody' is not in the pool"),
        (("--pin", "pool-00001", "--exclude", "pool-00001"), "both pinned and excluded"),
        (("--budget", "0tokens"), "not a budget"),
        (("--budget", "auto:2"), "not a budget"),
        (("--budget", "auto", "--selector", "random"), "random has no gains"),
        (("--budget", "auto", "--selector", "full"), "full takes every record"),
        (("--cap", "task:3", "--selector", "full"), "full takes every record"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_scored(
    delift: Any, files: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    budget = () if "--budget" in arguments else ("--budget", 5)
    out, home = tmp_path / "o.jsonl", tmp_path / "home"
    where = ("--out", out, "--home", home)
    faults = delift("select", files.first_pool, *MODEL, *budget, *arguments, *where).faults
    assert any(said in fault for fault in faults), faults
    assert not out.exists() and not home.exists()


def test_the_model_itself_embeds(select: Any, tmp_path: Path) -> None:
    def chosen(*option: object) -> list[str]:
        assert select("--budget", 6, *option).status == 0
        return [row["id"] for row in rows(tmp_path / "o.jsonl")]

    own = chosen("--option", "embedder=model")
    assert own == chosen("--option", "embedder=model") != chosen("--option", "embedder=tfidf")
    embedding = ("--selector", "delift_se", "--option", "embedder=model")
    assert len(set(chosen(*embedding))) == 6


def test_an_unknown_selector_option_is_answered_with_the_ones_there_are(select: Any) -> None:
    (fault,) = select("--budget", 2, "--selector", "delift", "--option", "diagonl=keep").faults
    assert fault.startswith("--option diagonl: ")
    assert "mean 'diagonal'" in fault and "optimizer" in fault and "eta" in fault


def test_excluding_every_record_is_refused_by_the_name_of_the_option(
    select: Any, files: Any
) -> None:
    (fault,) = select("--budget", 2, "--exclude", files.first_pool).faults
    assert fault.startswith("--exclude: ") and "24 of 24" in fault
