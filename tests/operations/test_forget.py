import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import rebuild_reason
from delift_pipeline.operations.forget import forget
from delift_pipeline.records.left_out import forgotten_file, forgotten_ids
from delift_pipeline.records.stored import version_manifest
from delift_pipeline.records.versions import ingest

FIRST, SECOND = "instruction_tuning.delift_trusted", "continual.delift_trusted"


def subset_ids(home: Home, version: str, arm: str) -> list[str]:
    return pl.read_parquet(home.subset(version, arm) / "subset.parquet")["record_id"].to_list()


def pool_of(home: Home, version: str) -> pl.DataFrame:
    return pl.read_parquet(home.dataset(version) / "pool.parquet")


def text_files_with(home: Home, text: str) -> list[str]:
    """Files under the home, both databases left out, that hold a text as it is or in Parquet."""
    held = []
    for path in home.root.rglob("*"):
        inside = path.relative_to(home.root).parts
        if not path.is_file() or inside[0] in ("dagster", "mlflow"):
            continue
        if path.suffix == ".parquet":
            found = text in str(pl.read_parquet(path).to_dicts())
        else:
            found = text.encode() in path.read_bytes()
        held += [path.relative_to(home.root).as_posix()] if found else []
    return held


def test_dry_run_lists_and_changes_nothing(copied: Home) -> None:
    picked = subset_ids(copied, "v1", FIRST)[0]
    before = {p: p.read_bytes() for p in copied.root.rglob("*") if p.is_file()}
    found = forget(copied, [picked], dry_run=True)
    assert {p: p.read_bytes() for p in copied.root.rglob("*") if p.is_file()} == before
    names = {one["name"] for one in found.artifacts}
    assert {f"adapter:v1:{FIRST}", f"adapter:v2:{SECOND}", f"report:v2:{SECOND}"} <= names
    assert "adapter:v1:instruction_tuning.random" not in names or picked in subset_ids(
        copied, "v1", "instruction_tuning.random"
    )
    assert found.versions == {"v1": ["pool"], "v2": ["pool"]}
    assert found.runs[0].startswith("delift run --version v1 --arm")
    assert found.runs[1].startswith("delift run --version v2 --arm")


def test_forgotten_record_leaves_the_data_and_its_artifacts_are_marked(copied: Home) -> None:
    picked = subset_ids(copied, "v1", FIRST)[0]
    old = {version: version_manifest(copied, version) for version in ("v1", "v2")}
    found = forget(copied, [picked])
    assert found.applied
    for version in ("v1", "v2"):
        assert picked not in pool_of(copied, version)["record_id"]
        manifest = version_manifest(copied, version)
        assert manifest.content_hash != old[version].content_hash
        assert manifest.counts["pool"] == old[version].counts["pool"] - 1
        assert manifest.counts["forgotten"] == 1
    assert version_manifest(copied, "v2").parents == {
        "dataset:v1": version_manifest(copied, "v1").content_hash
    }
    for one in found.artifacts:
        assert picked in (rebuild_reason(copied.root / one["path"]) or "")
    assert forgotten_ids(copied) == {picked}


def test_forgetting_again_changes_nothing(copied: Home) -> None:
    picked = subset_ids(copied, "v1", FIRST)[0]
    forget(copied, [picked])
    hashes = [version_manifest(copied, version).content_hash for version in ("v1", "v2")]
    assert forget(copied, [picked]).versions == {}
    assert [version_manifest(copied, v).content_hash for v in ("v1", "v2")] == hashes


def test_next_run_makes_everything_again_without_the_record(copied: Home, program) -> None:
    picked = subset_ids(copied, "v1", FIRST)[0]
    row = pool_of(copied, "v1").filter(pl.col("record_id") == picked).row(0, named=True)
    for name in ("v2", "leaderboard"):
        for kind in ("datasets", "plans", "kernels", "subsets", "adapters", "reports"):
            shutil.rmtree(copied.root / kind / name, ignore_errors=True)
    assert text_files_with(copied, row["input"] or row["instruction"])
    random = pl.read_parquet(copied.adapter("v1", FIRST) / "trained_on.parquet")
    assert picked in random["record_id"]
    found = forget(copied, [picked])
    (run,) = found.runs
    assert program(*run.split()[1:], "--home", copied.root).status == 0
    assert picked not in subset_ids(copied, "v1", FIRST)
    dropped = pl.read_parquet(copied.subset("v1", FIRST) / "dropped.parquet")
    assert picked not in dropped["record_id"]
    trained = pl.read_parquet(copied.adapter("v1", FIRST) / "trained_on.parquet")
    assert picked not in trained["record_id"]
    assert [one for one in found.artifacts if rebuild_reason(copied.root / one["path"])] == []
    left = text_files_with(copied, picked)
    assert {path.split("/")[0] for path in left} <= {"forgotten.json"}


def write_lines(path: Path, texts: list[str]) -> Path:
    rows = [{"id": t, "instruction": "say", "input": t, "output": f"the {t}"} for t in texts]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "small")
    held = write_lines(tmp_path / "held.jsonl", ["held", "kept"])
    target = write_lines(tmp_path / "target.jsonl", ["aim", "goal"])
    pool = write_lines(tmp_path / "pool.jsonl", ["a", "b", "c"])
    ingest(home, pool, version="w1", heldout=held, target=target)
    return home


def test_later_ingest_of_the_record_leaves_it_out_and_counts_it(
    small: Home, tmp_path: Path
) -> None:
    forget(small, ["b"])
    again = write_lines(tmp_path / "again.jsonl", ["a", "b", "d"])
    manifest = ingest(small, again, version="w2", parents=["w1"])
    assert pool_of(small, "w2")["input"].to_list() == ["a", "d"]
    assert manifest.counts["forgotten"] == 1
    assert manifest.counts["left_out"] == 0
    assert manifest.counts["pool"] == 2


def test_hash_is_that_of_a_file_without_the_record(small: Home, tmp_path: Path) -> None:
    forget(small, ["b", "held", "aim"])
    other = Home.at(tmp_path / "other")
    ingest(
        other,
        write_lines(tmp_path / "less.jsonl", ["a", "c"]),
        version="w1",
        heldout=write_lines(tmp_path / "less_held.jsonl", ["kept"]),
        target=write_lines(tmp_path / "less_target.jsonl", ["goal"]),
    )
    ours, theirs = (version_manifest(home, "w1") for home in (small, other))
    # Sources carry the files' names, which is no part of the content where no row gives them.
    assert ours.details["target_hash"] == theirs.details["target_hash"]
    assert ours.content_hash == theirs.content_hash


def test_held_out_record_is_forgotten_too(copied: Home) -> None:
    name = pl.read_parquet(copied.dataset("v1") / "heldout.parquet")["record_id"][0]
    found = forget(copied, [name])
    assert "heldout" in found.versions["v1"]
    marked = {one["name"] for one in found.artifacts}
    assert f"report:v1:{FIRST}" in marked
    assert any(one.startswith("report:v1:initial-") for one in marked)
    assert not any(one.startswith("adapter:") for one in marked)


def test_originals_and_judgements_that_no_run_makes_again_are_named(
    small: Home, tmp_path: Path
) -> None:
    """What became of a drop, each with the record's text in it; another version's is not named."""
    places = ("w1", "accepted/w1", "accepted/2-w1", "rejected/w1")
    for place in (*places, "accepted/w10"):
        folder = small.inbox / place
        folder.mkdir(parents=True)
        write_lines(folder / "pool.jsonl", ["b"])
    lone = write_lines(small.inbox / "accepted" / "w1.jsonl", ["b"])
    (small.root / "judgements" / ("0" * 32) / "w1").mkdir(parents=True)
    beyond = forget(small, ["b"], dry_run=True).beyond
    named = {line.split()[0] for line in beyond}
    expected = {f"inbox/{place}" for place in places} | {lone.relative_to(small.root).as_posix()}
    assert named == expected | {f"judgements/{'0' * 32}/w1"}


def test_version_is_never_emptied(small: Home) -> None:
    before = version_manifest(small, "w1")
    with pytest.raises(InputError, match="nothing would be left of the pool of w1"):
        forget(small, ["a", "b", "c"])
    assert version_manifest(small, "w1") == before
    assert not forgotten_file(small).exists()


def test_damaged_list_stops_ingesting(small: Home, tmp_path: Path) -> None:
    forgotten_file(small).write_text("{", encoding="utf-8")
    with pytest.raises(DeliftError, match=r"forgotten.json is damaged"):
        ingest(small, write_lines(tmp_path / "x.jsonl", ["a", "x"]), version="w3", parents=["w1"])


def test_unknown_record_is_refused(small: Home, delift) -> None:
    (line,) = delift("forget", "nobody", "--home", small.root).faults
    assert "no record of any version has the id 'nobody'" in line


def test_forget_prints_what_it_did(small: Home, delift) -> None:
    said = delift("forget", "b", "--home", small.root, "--dry-run").out
    assert "would be forgotten" in said and "would be removed from the pool of w1" in said
    done = delift("forget", "b", "--home", small.root).out
    assert "  removed from the pool of w1" in done and "would" not in done
