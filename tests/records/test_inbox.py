"""The inbox: whose turn it is, what is taken, and what is rejected with its faults."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.inbox import InboxScan, inbox_entries, ingest_from_inbox, scan_inbox
from delift_pipeline.records.stored import load_version
from delift_pipeline.records.versions import ingest


def lines(numbers: Sequence[int], **more: Any) -> str:
    rows = [{"instruction": f"square {n}", "output": str(n * n), **more} for n in numbers]
    return "".join(json.dumps(row) + "\n" for row in rows)


def drop(
    home: Home, name: str, numbers: Sequence[int] = range(20), text: str | None = None
) -> Path:
    path = home.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(numbers) if text is None else text, encoding="utf-8")
    return path


def settled(home: Home, busy: dict[str, str] | None = None) -> InboxScan:
    """The second of two looks at an inbox that does not change."""
    return scan_inbox(home, scan_inbox(home, {}, {}).seen, busy or {})


def names(found: InboxScan) -> list[str]:
    return [entry.path.name for entry in found.ready]


class TestWhoseTurnItIs:
    def test_nothing_is_taken_at_first_sight_and_all_of_it_at_the_second(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl")
        first = scan_inbox(home, {}, {})
        assert names(first) == [] and "squares-v1.jsonl" in first.waiting
        assert names(scan_inbox(home, first.seen, {})) == ["squares-v1.jsonl"]

    def test_a_file_that_grows_between_two_looks_waits(self, home: Home) -> None:
        path = drop(home, "squares-v1.jsonl")
        first = scan_inbox(home, {}, {})
        with path.open("a") as file:
            file.write(lines([50]))
        second = scan_inbox(home, first.seen, {})
        assert names(second) == []
        assert names(scan_inbox(home, second.seen, {})) == ["squares-v1.jsonl"]

    @pytest.mark.parametrize(
        "name",
        [
            "squares-v1.jsonl.part", ".squares-v1.jsonl.X3f", "squares-v1.jsonl.tmp",
            "squares-v1.jsonl~", "squares-v1.jsonl.crdownload", ".hidden-v1/pool.jsonl",
        ],
    )  # fmt: skip
    def test_names_of_copies_in_progress_are_not_seen(self, home: Home, name: str) -> None:
        drop(home, name)
        assert inbox_entries(home) == []

    def test_a_folder_waits_while_a_copy_goes_on_inside(self, home: Home) -> None:
        drop(home, "squares-v1/pool.jsonl")
        part = drop(home, "squares-v1/heldout.jsonl.part", [90])
        assert names(settled(home)) == []
        part.rename(part.with_name("heldout.jsonl"))
        assert names(settled(home)) == ["squares-v1"]

    def test_an_empty_folder_is_left_alone(self, home: Home) -> None:
        (home.inbox / "squares-v1").mkdir(parents=True)
        found = settled(home)
        assert names(found) == [] and found.faulty == []

    def test_versions_of_one_data_set_go_one_by_one_and_others_beside_them(
        self, home: Home
    ) -> None:
        for name in ("squares-v10.jsonl", "squares-v9.jsonl", "cubes-v1.jsonl"):
            drop(home, name)
        found = settled(home)
        assert names(found) == ["cubes-v1.jsonl", "squares-v9.jsonl"]
        assert "squares-v9" in found.waiting["squares-v10.jsonl"]

    def test_a_folder_waits_for_the_parents_it_names(self, home: Home) -> None:
        drop(home, "b/pool.jsonl")
        drop(home, "b/version.yaml", text="parents: [a]\n")
        drop(home, "a/pool.jsonl")
        assert names(settled(home)) == ["a"]

    def test_folders_that_name_each_other_go_on_to_be_refused(self, home: Home) -> None:
        for one, other in (("a", "b"), ("b", "a")):
            drop(home, f"{one}/pool.jsonl")
            drop(home, f"{one}/version.yaml", text=f"parents: [{other}]\n")
        assert names(settled(home)) == ["a", "b"]
        with pytest.raises(InputError, match="no version 'b'"):
            ingest_from_inbox(home, "a")

    def test_a_version_waits_while_its_parent_is_at_work(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl")
        ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v2.jsonl", range(25))
        found = settled(home, {"squares-v1": "run 1234 works on it"})
        assert names(found) == []
        assert "run 1234" in found.waiting["squares-v2.jsonl"]
        assert names(settled(home)) == ["squares-v2.jsonl"]

    def test_two_entries_for_one_version_are_taken_one_after_the_other(self, home: Home) -> None:
        drop(home, "squares-v1/pool.jsonl")
        drop(home, "squares-v1.jsonl", range(5))
        assert names(settled(home)) == ["squares-v1"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("notes-v1.txt", "format"),
            ("squares.jsonl", "<dataset>-<version>"),
            ("squares-.jsonl", "<dataset>-<version>"),
            ("squares-v1.heldout.jsonl", "folder inbox/<version>/"),
            ("Squares-V1.jsonl", "version name"),
            ("squares-v1/data.jsonl", "no pool file"),
        ],
    )
    def test_what_can_be_no_version_is_faulty_and_blocks_nothing(
        self, home: Home, name: str, reason: str
    ) -> None:
        drop(home, name)
        drop(home, "cubes-v1.jsonl")
        found = settled(home)
        ((entry, faults),) = found.faulty
        assert entry.path.name == Path(name).parts[0]
        assert reason in faults[0].reason
        assert names(found) == ["cubes-v1.jsonl"]


class TestTaking:
    def test_a_first_lone_file_sets_a_seeded_tenth_aside_and_records_it(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl", range(40))
        manifest = ingest_from_inbox(home, "squares-v1")
        assert manifest.details["dataset"] == "squares"
        assert manifest.details["heldout_set_aside"] == {"share": 0.1, "seed": 0, "rows": 4}
        assert (manifest.counts["pool"], manifest.counts["heldout"]) == (36, 4)

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".parquet", ".json.zst"])
    def test_the_next_lone_file_follows_the_newest_version(
        self, home: Home, tmp_path: Path, suffix: str
    ) -> None:
        first = tmp_path / "first.jsonl"
        first.write_text(lines(range(40)))
        ingest(home, first, version="squares-v1", model="tiny", template="paper", existing="pool")
        write_as(home.inbox / f"squares-v2{suffix}", range(50))
        manifest = ingest_from_inbox(home, "squares-v2")
        old, new = load_version(home, "squares-v1"), load_version(home, "squares-v2")
        assert new.parents == ("squares-v1",)
        assert new.heldout.equals(old.heldout)
        settings = {name: manifest.details[name] for name in ("model", "template", "existing")}
        assert settings == {"model": "tiny", "template": "paper", "existing": "pool"}
        assert manifest.counts["new"] == 10

    def test_what_is_taken_moves_to_accepted_and_is_not_seen_again(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl")
        ingest_from_inbox(home, "squares-v1")
        assert inbox_entries(home) == []
        assert (home.inbox / "accepted" / "squares-v1.jsonl").is_file()

    def test_what_to_know_of_a_file_is_a_warning_and_ids_can_be_ignored(
        self, home: Home, caplog: pytest.LogCaptureFixture
    ) -> None:
        drop(home, "squares-v1.jsonl", text=lines(range(9), id="x"))
        ingest_from_inbox(home, "squares-v1")
        assert "'x#2'" in caplog.text
        caplog.clear()
        drop(home, "squares-v2/pool.jsonl", text=lines(range(9), id="x"))
        drop(home, "squares-v2/version.yaml", text="ids: ignore")
        ingest_from_inbox(home, "squares-v2")
        assert caplog.text == ""
        ids = load_version(home, "squares-v2").pool["source_ids"].list.first()
        assert ids.str.starts_with("pool-").all()

    def test_a_bad_file_is_rejected_with_its_faults_beside_it(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl", text=lines([1]) + '{"instruction": "x"}\n{broken\n')
        with pytest.raises(InputError) as caught:
            ingest_from_inbox(home, "squares-v1")
        rejected = home.inbox / "rejected"
        beside = (rejected / "squares-v1.jsonl.faults.txt").read_text().splitlines()
        assert beside == [str(fault) for fault in caught.value.faults]
        assert [line.split(": ")[0] for line in beside] == [
            "squares-v1.jsonl:2",
            "squares-v1.jsonl:3",
        ]
        assert (rejected / "squares-v1.jsonl").is_file()
        assert inbox_entries(home) == [] and home.versions() == []

    def test_after_a_rejection_the_name_is_free_for_a_better_file(self, home: Home) -> None:
        for text in ("{broken\n", "{worse\n"):
            drop(home, "squares-v1.jsonl", text=text)
            with pytest.raises(InputError):
                ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v1.jsonl")
        ingest_from_inbox(home, "squares-v1")
        assert home.versions() == ["squares-v1"]
        kept = {path.name for path in (home.inbox / "rejected").iterdir()}
        assert {"squares-v1.jsonl", "2-squares-v1.jsonl"} <= kept

    def test_asking_for_a_rejected_version_says_where_it_went(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl", text="{broken\n")
        for reason in ("invalid JSON", "squares-v1.jsonl.faults.txt"):
            with pytest.raises(InputError, match=reason):
                ingest_from_inbox(home, "squares-v1")

    def test_a_version_dropped_again_with_the_same_records_is_found(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl")
        first = ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v1.jsonl", list(reversed(range(20))))
        assert ingest_from_inbox(home, "squares-v1") == first

    def test_other_records_under_a_stored_name_are_rejected(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl")
        first = ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v1.jsonl", range(30))
        with pytest.raises(InputError, match="never changes"):
            ingest_from_inbox(home, "squares-v1")
        assert load_version(home, "squares-v1").manifest == first

    def test_a_folder_named_otherwise_than_its_version_yaml_is_rejected(self, home: Home) -> None:
        drop(home, "squares-v1/pool.jsonl")
        drop(home, "squares-v1/version.yaml", text="version: squares-v2\n")
        with pytest.raises(InputError, match="squares-v2"):
            ingest_from_inbox(home, "squares-v1")

    def test_a_folder_may_follow_several_parents(self, home: Home) -> None:
        drop(home, "a-v1.jsonl", range(20))
        drop(home, "b-v1.jsonl", range(100, 120))
        for name in ("a-v1", "b-v1"):
            ingest_from_inbox(home, name)
        pools = [
            load_version(home, name).pool["instruction"].to_list() for name in ("a-v1", "b-v1")
        ]
        known = [int(text.split()[1]) for pool in pools for text in pool]
        drop(home, "ab-v1/pool.jsonl", [*known, 200, 201])
        drop(home, "ab-v1/heldout.jsonl", [300])
        drop(home, "ab-v1/version.yaml", text="{dataset: both, parents: [a-v1, b-v1]}\n")
        manifest = ingest_from_inbox(home, "ab-v1")
        assert manifest.details["parents"] == ["a-v1", "b-v1"]
        assert manifest.counts["new"] == 2


class TestRepeatedContent:
    def test_a_version_that_only_reorders_another_is_linked_to_it(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl", range(40))
        first = ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v2.jsonl", [*reversed(range(40)), 3, 4, 5])
        second = ingest_from_inbox(home, "squares-v2")
        assert second.content_hash == first.content_hash
        assert second.details["same_as"] == "squares-v1"

    def test_a_version_with_one_more_record_is_not(self, home: Home) -> None:
        drop(home, "squares-v1.jsonl", range(40))
        ingest_from_inbox(home, "squares-v1")
        drop(home, "squares-v2.jsonl", range(41))
        assert "same_as" not in ingest_from_inbox(home, "squares-v2").details


def write_as(path: Path, numbers: Sequence[int]) -> None:
    """Records in the format that the file's name says."""
    import polars as pl

    from delift_pipeline.records.tables import compress, file_kind

    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame([json.loads(line) for line in lines(numbers).splitlines()])
    kind = file_kind(path)
    if kind.format == "parquet":
        frame.write_parquet(path)
        return
    text = {
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
        "json": lambda: json.dumps(frame.to_dicts()),
    }[str(kind.format)]()
    path.write_bytes(compress(text.encode(), kind.codec))
