"""The step behind `raw_dataset`: a stored version, or one taken from the inbox, checked."""

from collections.abc import Iterator

import polars as pl

from delift_pipeline.errors import Refused
from delift_pipeline.plots import histogram_png
from delift_pipeline.records.inbox import find, ingest_dropped
from delift_pipeline.records.schema import RECORD_SCHEMA
from delift_pipeline.records.stored import DatasetVersion, changes, load_version, pool_ids
from delift_pipeline.steps.outcome import Check, Outcome, kept_plot, preview
from delift_pipeline.storage.home import Home

CODE_VERSION = "1"
PREVIEWED = ("record_id", "instruction", "input", "output", "task", "copies")


def open_dataset(home: Home, version: str) -> Outcome:
    """The stored version, ingested from the inbox where it is not stored yet.

    Something else under the name of a stored version is rejected, and the version stays as it is.

    Raises:
        Refused: it is neither stored nor in the inbox, or what is in the inbox is faulty.
        DeliftError: the stored files are damaged.
    """
    stored = version in home.versions()
    refused = _take(home, version) if stored else None
    if not stored:
        ingest_dropped(home, version)
    dataset = load_version(home, version)
    return Outcome(
        manifest=dataset.manifest,
        path=home.dataset(version).relative_to(home.root).as_posix(),
        reused=stored,
        facts=_facts(home, dataset),
        plots={"answer lengths": _lengths(home, dataset)},
        tables={"first records": preview(dataset.pool, PREVIEWED)},
        checks=_checks(home, dataset) | {"inbox": _inbox_check(refused)},
    )


def _take(home: Home, version: str) -> Refused | None:
    """Take what was dropped under the name of a stored version; why it was rejected, or None."""
    if find(home, version) is None:
        return None
    try:
        ingest_dropped(home, version)
    except Refused as refused:
        return refused
    return None


def _inbox_check(refused: Refused | None) -> Check:
    if refused is None:
        return Check(True, "nothing under this name was rejected")
    return Check(False, f"rejected, see inbox/rejected/: {refused}")


def _lengths(home: Home, dataset: DatasetVersion) -> bytes:
    def draw() -> bytes:
        words = dataset.pool["output"].str.split(" ").list.len().to_numpy()
        return histogram_png(words, "answers of the pool", "words, split at blanks")

    return kept_plot(home.dataset(dataset.version) / "lengths.png", draw)


def _facts(home: Home, dataset: DatasetVersion) -> dict[str, float | int | str]:
    compared = changes(home, dataset.version)
    facts: dict[str, float | int | str] = {
        **dataset.manifest.counts,
        "stages": ", ".join(dataset.stages()),
        "dataset": dataset.manifest.details["dataset"],
        "coverage": dataset.manifest.details["coverage"],
    }
    if same := dataset.manifest.details.get("same_as"):
        facts["same_as"] = same
    if dataset.parents:
        facts["parent_versions"] = ", ".join(dataset.parents)
        facts |= {"added": compared.added, "removed": compared.removed, "changed": compared.changed}
    return facts


def _checks(home: Home, dataset: DatasetVersion) -> dict[str, Check]:
    wrong = [name for name, frame in _parts(dataset) if frame.schema != RECORD_SCHEMA]
    empty = [name for name, frame in _parts(dataset) if frame.is_empty()]
    shared = _shared(home, dataset)
    return {
        "schema": Check(not wrong, f"columns and types differ in: {', '.join(wrong) or 'none'}"),
        "not_empty": Check(not empty, f"empty sets: {', '.join(empty) or 'none'}"),
        "disjoint": Check(
            not shared,
            f"{len(shared)} records are shared between pool, target and held-out set",
            {"shared": len(shared), "first": ", ".join(shared[:5])},
        ),
    }


def _parts(dataset: DatasetVersion) -> Iterator[tuple[str, pl.DataFrame]]:
    yield "pool", dataset.pool
    if dataset.target is not None:
        yield "target", dataset.target
    yield "heldout", dataset.heldout


def _shared(home: Home, dataset: DatasetVersion) -> list[str]:
    """record_ids in more than one of pool (with the parents' pools), target and held-out set."""
    seen: set[str] = set(dataset.pool["record_id"]) | set(pool_ids(home, dataset.parents))
    shared: set[str] = set()
    for name, frame in _parts(dataset):
        if name != "pool":
            ids = set(frame["record_id"])
            shared |= seen & ids
            seen |= ids
    return sorted(shared)
