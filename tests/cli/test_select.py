"""`delift select`: a file in, the part worth training on out, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.cli.data import _default_out

MODEL = ("--model", "demo", "--template", "world", "--threads", 1)
KEYS = {
    "pool",
    "selected",
    "objective",
    "objective_random",
    "pairs_scored",
    "pairs_reused",
    "seconds",
    "fingerprint",
    "out",
    "picks",
    "picks_changed_by_model",
}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rank_of(row: dict[str, Any]) -> int:
    return row["rank"]


@pytest.fixture
def select(delift: Any, files: Any, scores: Path) -> Any:
    """Select from the first pool; scores are kept between tests."""

    def call(*arguments: object, file: Path = files.first_pool, selector: str = "delift") -> Any:
        selected = ("--selector", selector, "--home", scores)
        return delift("select", file, *MODEL, *selected, *arguments)

    return call


def test_json_has_the_promised_keys(select: Any, tmp_path: Path) -> None:
    report = select("--budget", 0.3, "--out", tmp_path / "o.jsonl", "--json").json
    assert set(report) >= KEYS
    assert (report["pool"], report["selected"]) == (24, 7)
    assert report["out"] == str(tmp_path / "o.jsonl")
    assert report["objective"] > report["objective_random"] > 0
    assert report["pairs_scored"] + report["pairs_reused"] == 24 * 24
    assert len(report["fingerprint"]) == 32


def test_picks_are_named_in_rank_order_and_compared_with_coverage_alone(
    select: Any, tmp_path: Path
) -> None:
    out, why = tmp_path / "o.jsonl", tmp_path / "why.jsonl"
    answer = select("--budget", 0.3, "--out", out, "--why", why, "--json")
    ranked = sorted((row for row in rows(why) if row.get("rank") is not None), key=rank_of)
    picks = answer.json["picks"]
    assert picks == [row["record_id"] for row in ranked]
    embedded = ("--option", "embedder=tfidf", "--budget", 0.3, "--out", out, "--json")
    alone = select(*embedded, selector="delift_se").json
    changed = len(set(picks) - set(alone["picks"]))
    assert answer.json["picks_changed_by_model"] == changed
    assert f"the model changed {changed} of the 7 picks" in answer.err
    assert alone["picks_changed_by_model"] is None


def test_a_model_that_changes_no_pick_gives_a_warning(select: Any, tmp_path: Path) -> None:
    options = ("--option", "floor=1000", "--budget", 0.3, "--out", tmp_path / "o.jsonl", "--json")
    answer = select(*options, selector="delift_trusted")  # No record has so many near prompts.
    assert answer.json["picks_changed_by_model"] == 0
    assert "warning: The model changed none of the 7 picks." in answer.err


@pytest.mark.parametrize("selector", ["delift", "random"])
def test_a_smaller_budget_is_a_prefix(select: Any, tmp_path: Path, selector: str) -> None:
    small, large = tmp_path / "10.jsonl", tmp_path / "30.jsonl"
    assert select("--budget", 0.1, "--out", small, selector=selector).status == 0
    assert select("--budget", 0.3, "--out", large, selector=selector).status == 0
    assert len(rows(small)) == 2 and len(rows(large)) == 7
    assert large.read_bytes().startswith(small.read_bytes())


def test_the_same_command_twice_gives_the_same_bytes_and_scores_nothing(
    delift: Any, files: Any, tmp_path: Path
) -> None:
    def once(name: str) -> tuple[dict[str, Any], bytes, bytes]:
        out, why = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.why.jsonl"
        report = delift(
            "select", files.first_pool, *MODEL, "--selector", "delift", "--budget", 0.3,
            "--out", out, "--why", why, "--home", tmp_path / "home", "--json",
        ).json  # fmt: skip
        return report, out.read_bytes(), why.read_bytes()

    first, *written = once("first")
    second, *again = once("second")
    assert written == again
    assert (first["pairs_scored"], first["pairs_reused"]) == (24 * 24, 0)
    assert (second["pairs_scored"], second["pairs_reused"]) == (0, 24 * 24)
    timeless = {"seconds", "out", "why", "pairs_scored", "pairs_reused"}
    for key in set(first) - timeless:
        assert first[key] == second[key], key


def test_without_a_store_the_bytes_are_the_same(
    select: Any, delift: Any, files: Any, tmp_path: Path
) -> None:
    assert select("--budget", 0.3, "--out", tmp_path / "a.jsonl").status == 0
    fresh = ("--selector", "delift", "--budget", 0.3, "--home", tmp_path / "fresh")
    out = tmp_path / "b.jsonl"
    assert delift("select", files.first_pool, *MODEL, *fresh, "--out", out).status == 0
    assert (tmp_path / "a.jsonl").read_bytes() == out.read_bytes()


def test_chosen_lines_are_kept_verbatim_in_rank_order(
    select: Any, files: Any, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.jsonl"
    lines = files.first_pool.read_text(encoding="utf-8").splitlines()
    spaced = [line.replace('": "', '" :  "').replace("{", '{"extra": 1.0, ') for line in lines]
    odd.write_text("\n".join(spaced) + "\n", encoding="utf-8")
    out, why = tmp_path / "o.jsonl", tmp_path / "w.jsonl"
    assert select("--budget", 5, "--out", out, "--why", why, file=odd).status == 0
    chosen = out.read_text(encoding="utf-8").splitlines()
    assert set(chosen) <= set(spaced)
    ranked = [row["source_id"] for row in rows(why) if "rank" in row]
    assert [json.loads(line)["id"] for line in chosen] == ranked


def test_reasons_say_what_each_record_covers_and_what_covers_the_dropped(
    select: Any, tmp_path: Path
) -> None:
    why = tmp_path / "w.jsonl"
    answer = select("--budget", 0.3, "--out", tmp_path / "o.jsonl", "--why", why, "--json")
    kept = [row for row in rows(why) if "rank" in row]
    dropped = [row for row in rows(why) if "rank" not in row]
    assert (len(kept), len(dropped)) == (7, 17)
    assert [row["rank"] for row in kept] == list(range(7))
    assert all({"record_id", "source_id", "gain", "covers"} <= set(row) for row in kept)
    assert all({"record_id", "source_id", "covered_by"} <= set(row) for row in dropped)
    gains = [row["gain"] for row in kept]
    assert gains == sorted(gains, reverse=True)
    assert sum(gains) == pytest.approx(answer.json["objective"])
    picked = {row["record_id"]: set(row["covers"]) for row in kept}
    for row in dropped:
        if row["covered_by"] is not None:
            assert row["record_id"] in picked[row["covered_by"]]
    assert len({row["record_id"] for row in rows(why)}) == 24


def test_random_scores_nothing_and_depends_on_the_seed_only(select: Any, tmp_path: Path) -> None:
    def drawn(name: str, seed: int) -> bytes:
        out = tmp_path / f"{name}.jsonl"
        command = ("--budget", 6, "--seed", seed, "--out", out, "--json")
        assert select(*command, selector="random").json["pairs_scored"] == 0
        return out.read_bytes()

    assert drawn("a", 1) == drawn("b", 1) != drawn("c", 2)


def test_full_keeps_every_record(select: Any, files: Any, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    assert select("--budget", "full", "--out", out, selector="full").status == 0
    assert sorted(out.read_text().splitlines()) == sorted(files.first_pool.read_text().splitlines())


def test_a_target_set_makes_it_task_specific(select: Any, files: Any, tmp_path: Path) -> None:
    general, target = tmp_path / "g.jsonl", ("--target", files.first_target)
    select("--budget", 5, "--out", general)
    implied = select("--budget", 5, *target, "--out", tmp_path / "a.jsonl", "--json").json
    stage = ("--stage", "task_specific")
    named = select("--budget", 5, *target, *stage, "--out", tmp_path / "b.jsonl", "--json").json
    assert implied["stage"] == named["stage"] == "task_specific"
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    weight = ("--option", "eta=100")
    heavy = tmp_path / "c.jsonl"
    assert select("--budget", 5, *target, *weight, "--out", heavy).status == 0
    assert heavy.read_bytes() != general.read_bytes()


def test_delift_replays_a_share_of_the_existing_records(
    select: Any, files: Any, tmp_path: Path
) -> None:
    out, why = tmp_path / "o.jsonl", tmp_path / "why.jsonl"
    command = ("--budget", 10, "--existing", files.first_pool, "--out", out, "--why", why, "--json")
    report = select(*command, "--option", "replay=0.3", file=files.second_pool).json
    old = {json.dumps(row) for row in rows(files.first_pool)}
    assert sum(json.dumps(row) in old for row in rows(out)) == 3
    assert sum(bool(row.get("replayed")) for row in rows(why)) == 3
    assert "3 of the picks are replayed from the existing records" in report["notes"]


def test_existing_records_make_it_continual_and_are_never_chosen(
    select: Any, files: Any, tmp_path: Path
) -> None:
    out = tmp_path / "o.jsonl"
    command = ("--budget", 0.3, "--existing", files.first_pool, "--out", out, "--json")
    report = select(*command, file=files.second_pool).json
    assert (report["stage"], report["pool"], report["selected"]) == ("continual", 20, 6)
    known = {row["id"] for row in rows(files.first_pool)}
    assert not known & {row["id"] for row in rows(out)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stage", "task_specific"), "--target"),
        (("--stage", "continual"), "--existing"),
        (("--stage", "finetuning"), "finetuning"),
        (("--stage", "continual", "--target", "TARGET"), "--target"),
        (("--stage", "instruction_tuning", "--target", "TARGET"), "--target"),
        (("--selector", "best"), "best"),
        (("--option", "eta=-1"), "eta"),
        (("--option", "colour=red"), "colour"),
        (("--budget", "0"), "budget"),
        (("--budget", "1.5"), "budget"),
        (("--budget", "-0.1"), "budget"),
        (("--budget", "nan"), "budget"),
        (("--budget", "25"), "25"),
        (("--dtype", "float99"), "dtype"),
        (("--template", "nowhere"), "nowhere"),
        (("--column", "instruction=nowhere"), "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(
    delift: Any, files: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [str(files.first_target) if one == "TARGET" else one for one in arguments]
    model = ("--model", "demo", "--selector", "delift", "--budget", "0.3")
    out, home = tmp_path / "o.jsonl", tmp_path / "home"
    answer = delift("select", files.first_pool, *model, *given, "--out", out, "--home", home)
    assert any(said in fault for fault in answer.faults)
    assert not out.exists()


def test_faulty_rows_are_refused_with_their_places(delift: Any, files: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(files.first_pool.read_text() + '{"id": "x", "instruction": "say"}\n{broken\n')
    out = tmp_path / "o.jsonl"
    common = ("--home", tmp_path / "home", "--selector", "delift", "--budget", 3, "--out", out)
    faults = delift("select", file, *MODEL, *common).faults
    assert [fault.split(": ")[0] for fault in faults] == [f"{file}:25", f"{file}:26"]
    assert not out.exists() and not (tmp_path / "home").exists()
    skipped = delift("select", file, *MODEL, *common, "--skip-bad", "--json")
    assert skipped.json["left_out"] == 2
    assert "2 faulty rows were left out" in skipped.err


def test_an_output_never_replaces_an_input(select: Any, files: Any, tmp_path: Path) -> None:
    before = files.first_pool.read_bytes()
    same = tmp_path / "same.jsonl"
    for outputs in (("--out", files.first_pool), ("--out", same, "--why", same)):
        (fault,) = select("--budget", 3, *outputs).faults
        assert "another file" in fault
    assert files.first_pool.read_bytes() == before and not same.exists()


def test_an_unknown_model_is_one_sentence(delift: Any, files: Any, tmp_path: Path) -> None:
    common = ("--selector", "delift", "--budget", 3, "--home", tmp_path / "home")
    out = tmp_path / "o.jsonl"
    answer = delift("select", files.first_pool, "--model", tmp_path / "no", *common, "--out", out)
    (fault,) = answer.faults
    assert str(tmp_path / "no") in fault


def test_the_default_output_lies_beside_the_caller(
    select: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert select("--budget", 3).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["demo-v1.selected.jsonl"]


def test_formats_follow_the_suffix(select: Any, files: Any, tmp_path: Path) -> None:
    import polars as pl

    select("--budget", 4, "--out", tmp_path / "o.jsonl")
    select("--budget", 4, "--out", tmp_path / "o.parquet")
    select("--budget", 4, "--out", tmp_path / "o.csv.gz")
    names = [row["id"] for row in rows(tmp_path / "o.jsonl")]
    assert pl.read_parquet(tmp_path / "o.parquet")["id"].to_list() == names
    assert pl.read_csv(tmp_path / "o.csv.gz")["id"].to_list() == names


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_the_default_output_of_standard_input_is_named_after_it(name: str) -> None:
    assert _default_out(Path(name)) == Path("stdin.selected.jsonl")
