"""Homes with a history and no model: made by the real writers, without training anything."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence

import polars as pl

from delift_pipeline.core import atomic
from delift_pipeline.core.atomic import replace_folder, write_json, write_parquet
from delift_pipeline.core.hashing import digest_json, digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest
from delift_pipeline.evaluation.result import SAMPLE_SCHEMA, Evaluation, write_evaluation
from delift_pipeline.lineage.adapter import write_trained_on
from delift_pipeline.records.schema import RECORD_SCHEMA, content_hash, record_id
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import write_subset


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Write without waiting for the disk: a generated home need not survive a power cut."""
    kept = atomic.sync
    atomic.sync = lambda path: None
    try:
        yield
    finally:
        atomic.sync = kept


def records_of(names: Sequence[str]) -> pl.DataFrame:
    rows = []
    for name in names:
        text = {"instruction": "say", "input": name, "output": f"the {name}"}
        about = {"source": "history", "task": "say", "copies": 1, "source_ids": [name]}
        rows.append({"record_id": record_id(**text), **text, **about})
    return pl.DataFrame(rows, schema=RECORD_SCHEMA)


def add_version(home: Home, version: str, names: Sequence[str], parents: Sequence[str]) -> None:
    pool, heldout = records_of(names), records_of(["held out"])
    hashes = {"pool": content_hash(pool), "target": None, "heldout": content_hash(heldout)}
    known = {f"dataset:{p}": manifest_hash(home.dataset(p)) for p in parents}
    about = {"dataset": "history", "version": version, "parents": list(parents)}
    settings = {"coverage": "auto", "existing": "subset", "model": None, "template": None}
    counts = {"pool": pool.height, "target": 0, "heldout": 1, "new": pool.height}
    manifest = Manifest(
        kind="dataset",
        content_hash=digest_json(hashes),
        parents=known,
        counts=counts,
        details=about | settings | {f"{part}_hash": value for part, value in hashes.items()},
        request=about,
    )
    with replace_folder(home.dataset(version)) as folder:
        write_parquet(folder / "pool.parquet", pool)
        write_parquet(folder / "heldout.parquet", heldout)
        manifest.write(folder)


def manifest_hash(folder) -> str:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest.content_hash


def add_subset(home: Home, version: str, arm: str, names: Sequence[str]) -> None:
    pool = pl.read_parquet(home.dataset(version) / "pool.parquet")
    ranking = tuple(records_of(names)["record_id"])
    stage, selector = arm.split(".")
    write_subset(
        home.subset(version, arm),
        Selection(selector=selector, ranking=ranking),
        pool,
        request={"stage": stage, "selector": selector, "budget": len(names), "seed": 0},
        parents={f"dataset:{version}": manifest_hash(home.dataset(version))},
    )


def add_adapter(home: Home, version: str, arm: str, start: tuple[str, str] | None) -> None:
    name, subset = f"adapter:{version}:{arm}", home.subset(version, arm)
    ranking = pl.read_parquet(subset / "subset.parquet")["record_id"]
    parents = {f"subset:{version}:{arm}": manifest_hash(subset)}
    before = home.adapter(*start) if start else None
    if start and before:
        parents[f"adapter:{start[0]}:{start[1]}"] = manifest_hash(before)
    digest = digest_text(*sorted(ranking), *parents.values())
    details = {
        "method": "lora",
        "started_from": f"adapter:{start[0]}:{start[1]}" if start else None,
    }
    with replace_folder(home.adapter(version, arm)) as folder:
        write_trained_on(folder, name, ranking, {}, before)
        write_json(folder / "tracking.json", {"run_id": digest, "link": "", "server": "home"})
        Manifest(kind="adapter", content_hash=digest, parents=parents, details=details).write(
            folder
        )


def add_report(home: Home, version: str, arm: str) -> None:
    row = {"record_id": records_of(["held out"])["record_id"][0], "answer_loss": 1.0}
    samples = pl.DataFrame([row], schema=SAMPLE_SCHEMA)
    metrics = {"answer_loss": 1.0, "answer_loss_se": 0.0}
    evaluation = Evaluation(metrics, samples, {"heldout": 1, "records": 1})
    stage, selector = arm.split(".")
    facts = {"kind": "arm", "version": version, "arm": arm, "stage": stage}
    facts |= {"selector": selector, "fingerprint": "0" * 32, "beside": {}}
    parents = {f"adapter:{version}:{arm}": manifest_hash(home.adapter(version, arm))}
    with replace_folder(home.report(version, arm)) as folder:
        write_evaluation(folder, evaluation, facts)
        Manifest(kind="report", content_hash=evaluation.content_hash, parents=parents).write(folder)


def copy_cell(home: Home, version: str, arm: str, others: Sequence[str]) -> None:
    """Give other arms of a version the same subset, adapter and report under their own names."""
    for other in others:
        for kind in ("subset", "adapter", "report"):
            source, target = (getattr(home, kind)(version, name) for name in (arm, other))
            shutil.copytree(source, target)
            manifest = read_manifest(source)
            assert manifest is not None
            parents = {name.replace(arm, other): h for name, h in manifest.parents.items()}
            manifest.model_copy(update={"parents": parents}).write(target)
