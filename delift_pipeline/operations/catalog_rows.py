"""What the catalog holds, read from the manifests and files of a home."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.evaluation.options import METRICS
from delift_pipeline.evaluation.result import REPORT
from delift_pipeline.lineage.tracked import tracked
from delift_pipeline.lineage.trained_on import TRAINED_ON
from delift_pipeline.scoring.shards import BASELINE
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.run import DROPPED, SUBSET
from delift_pipeline.storage.atomic import read_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, rebuild_reason
from delift_pipeline.utility.kernel_files import DISTANCE, KL, read_index, read_matrix

PAIRS_LIMIT = 5_000_000
"""Pairs of one kernel or score store that the catalog takes in; larger ones stay in their files."""
PARTS = ("pool", "target", "heldout")
Frames = dict[str, list[pl.DataFrame]]


def rows_of(home: Home, sources: Iterable[str], pairs_limit: int = PAIRS_LIMIT) -> Frames:
    """Everything the catalog holds of some artifacts: table -> frames.

    Args:
        home: The home.
        sources: Folders of artifacts, relative to the home.
        pairs_limit: See `PAIRS_LIMIT`.
    """
    frames: Frames = defaultdict(list)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        by_kind[source.split("/", 1)[0]].append(source)
    manifests = {s: read_manifest(home.root / s) for found in by_kind.values() for s in found}
    _add(frames, "artifacts", _artifacts(home, manifests))
    _add(frames, "edges", _edges(manifests))
    _add_datasets(frames, home, {s: manifests[s] for s in by_kind["datasets"]})
    _add_subsets(frames, home, by_kind["subsets"])
    _add_trained(frames, home, by_kind["adapters"])
    _add(frames, "measured", [row for s in by_kind["reports"] for row in _measured(home, s)])
    for source in by_kind["kernels"]:
        _add_kernel(frames, home, source, manifests[source], pairs_limit)
    for source in by_kind["scores"]:
        if source.count("/") == 1:
            _add_scores(frames, home, source, pairs_limit)
    return frames


def _add(frames: Frames, table: str, rows: Iterable[dict[str, Any]]) -> None:
    listed = list(rows)
    if listed:
        frames[table].append(pl.DataFrame(listed, infer_schema_length=None))


def _artifacts(home: Home, manifests: dict[str, Manifest | None]) -> Iterator[dict[str, Any]]:
    for source, manifest in manifests.items():
        if manifest is None:
            continue
        name, version, arm = _named(source)
        mlflow = tracked(home.root / source) if source.startswith("adapters/") else {}
        yield {
            "source": source,
            "artifact": name,
            "kind": manifest.kind,
            "version": version,
            "arm": arm,
            "content_hash": manifest.content_hash,
            "created": manifest.created,
            "fingerprint": manifest.fingerprint,
            "dagster_run": manifest.run_id,
            "mlflow_run": mlflow.get("run_id"),
            "code_version": manifest.code_version,
            "delift": manifest.delift_version,
            "git_commit": manifest.git_commit,
            "rebuild": rebuild_reason(home.root / source),
        }


def _named(source: str) -> tuple[str, str | None, str | None]:
    """An artifact's name, version and arm from where it lies."""
    kind, *rest = source.split("/")
    if kind == "scores":
        return (f"scores:{rest[2]}", rest[2], None) if len(rest) > 2 else ("model", None, None)
    if kind in ("subsets", "adapters", "reports"):
        arm = rest[1] if len(rest) > 1 else None
        return ":".join((kind.removesuffix("s"), *rest)), rest[0], arm
    return f"{kind.removesuffix('s')}:{rest[0]}", rest[0], None


def _edges(manifests: dict[str, Manifest | None]) -> Iterator[dict[str, Any]]:
    for source, manifest in manifests.items():
        for parent, digest in (manifest.parents if manifest else {}).items():
            yield {"source": source, "made_of": parent, "hash": digest}


def _add_datasets(frames: Frames, home: Home, manifests: dict[str, Manifest | None]) -> None:
    _add(frames, "versions", (_version(s, m) for s, m in manifests.items() if m))
    for source in manifests:
        for part in PARTS:
            path = home.root / source / f"{part}.parquet"
            if path.is_file():
                own = pl.read_parquet(path).rename({"source": "origin"})
                version = source.split("/")[1]
                where = {"source": source, "version": version, "part": part}
                frames["records"].append(own.with_columns(**_literals(where)))


def _literals(values: dict[str, str]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in values.items()}


def _version(source: str, manifest: Manifest) -> dict[str, Any]:
    about, counts = manifest.details, manifest.counts
    return {
        "source": source,
        "version": source.split("/")[1],
        "dataset": about["dataset"],
        "content_hash": manifest.content_hash,
        "created": manifest.created,
        "parents": about["parents"],
        "records": counts["pool"],
        "targets": counts["target"],
        "heldout": counts["heldout"],
        "new": counts["new"],
        "model": about.get("model"),
        "template": about.get("template"),
    }


def _add_subsets(frames: Frames, home: Home, sources: list[str]) -> None:
    for file, chosen in ((SUBSET, True), (DROPPED, False)):
        frame = _scanned(home, sources, file)
        if frame is not None:
            frames["picks"].append(frame.with_columns(selected=pl.lit(chosen)))


def _add_trained(frames: Frames, home: Home, sources: list[str]) -> None:
    frame = _scanned(home, sources, TRAINED_ON)
    if frame is None:
        return
    parts = pl.col("source").str.split("/")
    own = pl.format("adapter:{}:{}", parts.list.get(1), parts.list.get(2))
    through = pl.when(pl.col("adapter") != own).then(pl.col("adapter"))
    frames["trained"].append(frame.with_columns(through=through).drop("adapter"))


def _scanned(home: Home, sources: list[str], file: str) -> pl.DataFrame | None:
    """One file of many folders as one frame, with its folder as `source`."""
    paths = [home.root / source / file for source in sources]
    present = [path for path in paths if path.is_file()]
    if not present:
        return None
    scanned = pl.scan_parquet(
        present, include_file_paths="path", missing_columns="insert", extra_columns="ignore"
    )
    start = len(home.root.as_posix()) + 1
    folder = pl.col("path").str.slice(start).str.strip_suffix(f"/{file}")
    return scanned.with_columns(source=folder).drop("path").collect()


def _measured(home: Home, source: str) -> Iterator[dict[str, Any]]:
    """One row a metric of a report; the base model's have the arm `initial`."""
    path = home.root / source / REPORT
    if not path.is_file():
        return
    facts = read_json(path)
    evaluation, beside = facts["evaluation"], facts.get("beside", {})
    for metric in METRICS:
        if metric not in evaluation["metrics"]:
            continue
        yield {
            "source": source,
            "version": facts["version"],
            "arm": facts.get("arm", "initial"),
            "stage": facts.get("stage"),
            "selector": facts.get("selector", "initial"),
            "metric": metric,
            "value": evaluation["metrics"][metric],
            "se": evaluation["metrics"].get(f"{metric}_se"),
            "records": evaluation["counts"]["records"],
            **_gap(beside, "random", metric),
            **_gap(beside, "initial", metric),
            "fingerprint": facts["fingerprint"],
        }


def _gap(beside: dict[str, Any], other: str, metric: str) -> dict[str, float | None]:
    found = ((beside.get(other) or {}).get("differences") or {}).get(metric) or {}
    return {f"minus_{other}": found.get("mean"), f"minus_{other}_se": found.get("se")}


def _add_kernel(
    frames: Frames, home: Home, source: str, manifest: Manifest | None, limit: int
) -> None:
    blocks = manifest.details["blocks"] if manifest else {}
    pairs = sum(entry["pairs"] for entry in blocks.values())
    if pairs > limit:
        _add(frames, "left_out", [_too_large(source, pairs, limit)])
        return
    for name in blocks:
        _add_block(frames, home.root / source, source, name)


def _add_block(frames: Frames, folder: Path, source: str, name: str) -> None:
    index = read_index(folder, name)
    where = {"source": source, "block": name}
    for side, ids in (("rows", index.rows), ("columns", index.columns)):
        numbers = pl.DataFrame({"number": range(len(ids)), "record_id": ids}, _NUMBERED)
        frames["kernel_ids"].append(numbers.with_columns(**_literals({**where, "side": side})))
    utility, kl = (read_matrix(folder, index, form) for form in (DISTANCE, KL))
    everything = np.arange(len(index.rows), dtype=np.int32)
    for j in range(len(index.columns)):
        rows, values = utility.column(j)
        frame = pl.DataFrame(
            {
                "target": everything if rows is None else np.asarray(rows),
                "demonstration": np.full(len(values), j, dtype=np.int32),
                "utility": np.asarray(values),
                "kl": np.asarray(kl.column(j)[1]),
            }
        )
        frames["kernel_pairs"].append(frame.with_columns(**_literals(where)))


_NUMBERED: dict[str, Any] = {"number": pl.Int32, "record_id": pl.String}


def _add_scores(frames: Frames, home: Home, source: str, limit: int) -> None:
    store = ScoreStore(home.root / source)
    if store.pairs_stored > limit:
        _add(frames, "left_out", [_too_large(source, store.pairs_stored, limit)])
        return
    ids = store.ids.names()
    numbers = pl.DataFrame({"number": range(len(ids)), "record_id": ids}, _NUMBERED)
    frames["score_ids"].append(numbers.with_columns(source=pl.lit(source)))
    found = [_shard_frame(shard, k) for shard in store.shards for k in _demonstrations(shard)]
    if found:
        # A pair that stands in several shards keeps the oldest one's value, as in the store.
        once = pl.concat(found).unique(["target", "demonstration"], keep="first")
        frames["score_pairs"].append(once.with_columns(source=pl.lit(source)))


def _demonstrations(shard: Any) -> range:
    return range(len(shard.demonstrations))


def _shard_frame(shard: Any, place: int) -> pl.DataFrame:
    targets, scores = shard.targets(place), shard.scores(place)
    demonstration = int(shard.demonstrations[place])
    alone = demonstration == BASELINE
    return pl.DataFrame(
        {
            "target": np.asarray(targets),
            "demonstration": [None if alone else demonstration] * len(targets),
            "squared_distance": np.asarray(scores.squared_distance),
            "sum_logprob": np.asarray(scores.sum_logprob),
            "tokens": np.asarray(shard.tokens(place)) if alone else [None] * len(targets),
        },
        schema_overrides={"demonstration": pl.Int32, "tokens": pl.Int32, "target": pl.Int32},
    )


def _too_large(source: str, pairs: int, limit: int) -> dict[str, Any]:
    why = f"more than the {limit:,} pairs the catalog takes in: read its files"
    return {"source": source, "pairs": pairs, "why": why}
