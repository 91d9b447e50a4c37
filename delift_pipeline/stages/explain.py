"""Explain why a record was chosen or dropped.

The explanation is read from the stored subset of a version, or from the file of reasons that
`delift select --why` wrote.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.errors import DeliftError, Fault, InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.kernel.kernel import load_block
from delift_pipeline.records.stored import find_record, load_version
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.support import support_of
from delift_pipeline.selection.embedding import MODEL
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.registry import traits_of
from delift_pipeline.selection.run import DROPPED, SUBSET
from delift_pipeline.selection.token_changes import token_changes
from delift_pipeline.selection.trust import (
    DEFAULT_FLOOR,
    DEFAULT_SCALE,
    SUSPECTED_BELOW,
    Evidence,
    evidence_of,
    record_line,
    trust_from_agreement,
    trust_from_both,
    trust_from_support,
)
from delift_pipeline.stages.arms import load_arms
from delift_pipeline.stages.result import known_records, required_manifest
from delift_pipeline.stages.score import unscorable_of
from delift_pipeline.stages.suspects import stored_token_changes

NEIGHBOURS = 5
REASON_KEYS = {"record_id", "source_id", "text", "trust", "near_duplicates", "suspected"}
NO_REASONS = "This line holds no reasons. Write the file again with `delift select --why FILE`"


@dataclass(frozen=True)
class Explanation:
    """Everything that is known about one record under one arm.

    Attributes:
        record: The texts, task, source and source ids of the record.
        rank: Its rank in the subset, from 0. None if it was dropped.
        gain: What it added to the objective. None if the selector maximises none.
        self_share: The share of the gain that comes from the record's own row of the kernel.
        replayed: Whether it was chosen from the existing records.
        covers: The records that it covers best, with their texts.
        covered_by: The chosen record that covers it best, with its text, or None.
        coverage: How well that record covers it.
        near_duplicates: The other records of its group of near duplicates, with their texts.
        evidence: Its trust, and the near prompts that disagree most. None if it is not scored.
        unscorable: Why it cannot be scored, and so not be chosen by its scores. None if it can.
        tokens: For each neighbour, the log-probability of each answer token alone and its change
            after that neighbour. They come from the model, or from a stored report of a suspected
            record. Empty without either.
    """

    version: str
    arm: str
    record_id: str
    record: dict[str, Any]
    selected: bool
    rank: int | None = None
    gain: float | None = None
    self_share: float | None = None
    replayed: bool = False
    covers: list[dict[str, str]] = field(default_factory=list)
    covered_by: dict[str, str] | None = None
    coverage: float | None = None
    near_duplicates: list[dict[str, str]] = field(default_factory=list)
    evidence: dict[str, Any] | None = None
    unscorable: str | None = None
    tokens: list[dict[str, Any]] = field(default_factory=list)


def explain(
    home: Home, version: str, arm: str, record: str, model: ModelOptions | None = None
) -> Explanation:
    """Explain why an arm chose or dropped one record.

    `record` is a record_id, the beginning of one, or a source id. With a model, the answer's tokens
    are scored after each of the neighbours in the evidence.

    Raises:
        InputError: there is no such version, arm, subset or record.
        DeliftError: stored files are damaged.
    """
    dataset, folder = load_version(home, version), home.subset(version, arm)
    load_arms(home).arm(arm)
    reason = (
        f"{version} has no subset of {arm} yet. Run it: delift run --version {version} --arm {arm}"
    )
    manifest = required_manifest(folder, reason, field="--arm")
    known = known_records(home, dataset)
    name = find_record(known, record, "no record of the version")
    texts = {row["record_id"]: row for row in known.iter_rows(named=True)}

    def summary_of(other: str) -> dict[str, str]:
        own = texts[other]["source_ids"][0] if other in texts else other
        return {"record_id": other, "source_id": own, "text": record_line(texts, other)}

    reader = None if model is None else LanguageModel(model, home)
    evidence = _read_evidence(home, version, manifest, dataset.pool, name, reader)
    evidence_json, changes = None, []
    if evidence is not None:
        near = [
            {**asdict(one), "disagrees": one.disagrees, **summary_of(one.record_id)}
            for one in evidence.neighbours
        ]
        evidence_json = {**evidence.as_json(), "neighbours": near}
        if reader is None:
            changes = stored_token_changes(home, version, str(manifest.fingerprint)).get(name, [])
        else:
            neighbours = {name: [one.record_id for one in evidence.neighbours]}
            changes = token_changes(reader, texts, neighbours)[name]
    frames = [pl.read_parquet(folder / file) for file in (SUBSET, DROPPED)]
    own = pl.col("record_id") == name
    rows = (row for frame in frames for row in frame.filter(own).iter_rows(named=True))
    groups = pl.concat([frame.select("record_id", "near_duplicates") for frame in frames])
    group = groups.drop_nulls().filter(own)["near_duplicates"].implode()
    alike = groups.filter(pl.col("near_duplicates").is_in(group) & ~own)["record_id"]
    return Explanation(
        version,
        arm,
        name,
        texts[name],
        **_facts(next(rows, {}), alike, summary_of),
        evidence=evidence_json,
        unscorable=unscorable_of(home, version, manifest.fingerprint).get(name),
        tokens=[
            {**change.as_json(), "source_id": summary_of(change.record_id)["source_id"]}
            for change in changes
        ],
    )


def _facts(
    row: Mapping[str, Any], alike: Iterable[str], summary_of: Callable[[str], dict[str, str]]
) -> dict[str, Any]:
    """Return the fields of a row of chosen or dropped records. Target records have no row."""
    by = row.get("covered_by")
    return {
        "selected": "rank" in row,
        "covers": [summary_of(other) for other in row.get("covers") or ()],
        "covered_by": None if by is None else summary_of(by),
        "near_duplicates": [summary_of(other) for other in alike],
        "replayed": bool(row.get("replayed")),
        **{key: row.get(key) for key in ("rank", "gain", "self_share", "coverage")},
    }


def _read_evidence(
    home: Home,
    version: str,
    manifest: Manifest,
    pool: pl.DataFrame,
    name: str,
    reader: LanguageModel | None,
) -> Evidence | None:
    """Compute the record's trust from the kernel that the subset was chosen with."""
    if manifest.fingerprint is None:
        return None
    options: dict[str, Any] = {}
    if traits_of(manifest.request["selector"]).weighs_trust:
        options = manifest.request["options"]
    embedder = options.get("embedder", "tfidf")
    if embedder == MODEL and reader is None:
        reason = "Trust was computed here with the model's own embeddings. Pass --model"
        raise InputError(reason, field="--model")
    kind, support = options.get("trust", "agreement"), None
    if kind != "agreement":
        support_reader = partial(support_of, ScoreStore(home.scores(manifest.fingerprint)))
        settings = (options.get("scale", DEFAULT_SCALE), embedder, reader)
        support = trust_from_support(pool, support_reader, *settings)
        if kind == "support":
            return evidence_of(support, name, NEIGHBOURS)
    try:
        block = load_block(home, version, manifest.fingerprint, "neighbours")
    except DeliftError:
        return None
    floor = options.get("floor", DEFAULT_FLOOR)
    trust = trust_from_agreement(block, pool, embedder, floor, reader)
    trust = trust if support is None else trust_from_both(trust, support)
    return evidence_of(trust, name, NEIGHBOURS)


def explain_file(path: Path, record: str) -> Explanation:
    """Explain one record of the file that `delift select --why` wrote.

    `record` is a record_id, the beginning of one, or a source id.

    Raises:
        InputError: the file is not a readable file of reasons, or `record` does not name one
            record.
    """
    known = {row["record_id"]: row for row in _read_reasons(path)}
    sources = [[row["source_id"]] for row in known.values()]
    ids = pl.DataFrame({"record_id": list(known), "source_ids": sources})
    row = known[find_record(ids, record, "no record of the file")]

    def summary_of(other: str) -> dict[str, str]:
        row = known.get(other, {"source_id": other, "text": other})
        return {"record_id": other, "source_id": row["source_id"], "text": row["text"]}

    suspected, evidence = row["suspected"] or (), None
    if row["trust"] is not None:
        neighbours = []
        for one in suspected:
            disagrees = (one["helps"] or 0.0) + (one["helped"] or 0.0) < 0
            neighbours.append({**summary_of(one["record_id"]), **one, "disagrees": disagrees})
        is_low = row["trust"] < SUSPECTED_BELOW
        evidence = {"trust": row["trust"], "suspected": is_low, "neighbours": neighbours}
    return Explanation(
        str(path),
        "delift select",
        row["record_id"],
        {"text": row["text"], "source_ids": [row["source_id"]]},
        **_facts(row, row["near_duplicates"], summary_of),
        evidence=evidence,
        unscorable=row.get("unscorable"),
        tokens=[
            {**one["tokens"], "source_id": summary_of(one["record_id"])["source_id"]}
            for one in suspected
            if one.get("tokens")
        ],
    )


def _read_reasons(path: Path) -> list[dict[str, Any]]:
    try:
        # splitlines() would also split at characters that a record's text may hold.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Fault(f"This file cannot be read: {error}", file=str(path))) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= REASON_KEYS:
            raise InputError(Fault(NO_REASONS, file=str(path), line=number))
        rows.append(row)
    return rows
