"""Why a record was chosen or not: everything that is stored about it, and what its tokens say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from delift_pipeline.arms import load_arms
from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.lineage.existing import SUBSET_FILE, ancestors
from delift_pipeline.records.stored import DatasetVersion, find_record, load_version
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.embedding import MODEL
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.reasons_trust import Evidence, evidence_of, text_of
from delift_pipeline.selection.registry import traits_of
from delift_pipeline.selection.run import DROPPED
from delift_pipeline.selection.token_changes import TokenChange, token_changes
from delift_pipeline.selection.trust import trust_of
from delift_pipeline.steps.score import part_folder
from delift_pipeline.steps.suspects import kept_changes
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest
from delift_pipeline.utility.kernel import load_block

NEIGHBOURS = 5


@dataclass(frozen=True)
class Explanation:
    """What is known of one record under one arm.

    Attributes:
        version, arm, record_id: What was asked.
        record: Its texts, task, source and source ids.
        selected: Whether it is in the subset.
        rank: From 0; None where dropped.
        gain: What it added to the objective, None where nothing was maximised.
        self_share: Share of the gain that is its own row.
        replayed: Whether it was chosen from the existing records.
        covers: Records it covers best, with their texts.
        covered_by: The chosen record that covers it best, with its text, or None.
        coverage: How well.
        near_duplicates: The other records of its group, with their texts.
        evidence: Trust, and the near prompts that speak most against it; None where not scored.
        unscorable: Why it cannot be scored, and so not be chosen by its scores; None where it can.
        tokens: Per neighbour each answer token's log-probability alone and after it, where a model
            was given, or a report has kept them of a suspected record.
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

    def as_json(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return asdict(self)


def explain(
    home: Home, version: str, arm: str, record: str, model: ModelOptions | None = None
) -> Explanation:
    """Explain one record of an arm's subset or of what it dropped.

    Args:
        home: The home.
        version: The dataset version.
        arm: The arm.
        record: A record_id, the beginning of one, or the file's own id.
        model: Where given, the answer's tokens are scored after the neighbours named.

    Raises:
        Refused: there is no such version, arm, subset or record.
        DeliftError: what is stored is damaged.
    """
    dataset = load_version(home, version)
    load_arms(home).arm(arm)
    manifest = _manifest(home, version, arm)
    known = _known(home, dataset)
    name = find_record(known, record, "no record of the version")
    texts = {row["record_id"]: row for row in known.iter_rows(named=True)}
    reader = None if model is None else LanguageModel(model, home)
    evidence = _evidence(home, dataset, manifest, name, reader)
    facts = _facts(home, version, arm, name, texts)
    changes = _changes(home, dataset.version, manifest, reader, texts, evidence)
    return Explanation(
        version,
        arm,
        name,
        texts[name],
        **facts,
        evidence=None if evidence is None else _with_texts(evidence, texts),
        unscorable=_unscorable(home, version, manifest).get(name),
        tokens=[
            {**change.as_json(), "source_id": _own_id(change.record_id, texts)}
            for change in changes
        ],
    )


def _manifest(home: Home, version: str, arm: str) -> Manifest:
    manifest = read_manifest(home.subset(version, arm))
    if manifest is None:
        reason = f"{version} has no subset of {arm} yet: delift run --version {version} --arm {arm}"
        raise Refused(Fault(reason, field="--arm"))
    return manifest


def _unscorable(home: Home, version: str, manifest: Manifest) -> dict[str, str]:
    """record_id -> why, of the records that scoring has left out."""
    if manifest.fingerprint is None:
        return {}
    scored = read_manifest(part_folder(home, version, manifest.fingerprint, "in_context"))
    return scored.details["unscorable"] if scored else {}


def _known(home: Home, dataset: DatasetVersion) -> pl.DataFrame:
    """The version's records, its target set and, for what is replayed, its ancestors' records."""
    frames = [dataset.pool, *(load_version(home, name).pool for name in ancestors(home, dataset))]
    if dataset.target is not None:
        frames.append(dataset.target)
    return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)


def _facts(
    home: Home, version: str, arm: str, name: str, texts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the stored subset says of a record."""
    folder = home.subset(version, arm)
    subset, dropped = (pl.read_parquet(folder / file) for file in (SUBSET_FILE, DROPPED))
    columns = ["record_id", "near_duplicates"]
    groups = pl.concat([subset.select(columns), dropped.select(columns)])
    duplicates = [_shown(other, texts) for other in _group(groups, name) if other != name]
    if (chosen := subset.filter(pl.col("record_id") == name)).height:
        row = chosen.row(0, named=True)
        return {
            "selected": True,
            **{key: row[key] for key in ("rank", "gain", "self_share", "replayed")},
            "covers": [_shown(other, texts) for other in row["covers"] or ()],
            "near_duplicates": duplicates,
        }
    left = dropped.filter(pl.col("record_id") == name)
    row = left.row(0, named=True) if left.height else {}
    by = row.get("covered_by")
    return {
        "selected": False,
        "covered_by": None if by is None else _shown(by, texts),
        "coverage": row.get("coverage"),
        "near_duplicates": duplicates,
    }


def _group(groups: pl.DataFrame, name: str) -> list[str]:
    own = groups.filter(pl.col("record_id") == name)["near_duplicates"].drop_nulls()
    if own.is_empty():
        return []
    return groups.filter(pl.col("near_duplicates") == own[0])["record_id"].to_list()


def _shown(record: str, texts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        "record_id": record,
        "source_id": _own_id(record, texts),
        "text": text_of(texts, record),
    }


def _own_id(record: str, texts: Mapping[str, Mapping[str, Any]]) -> str:
    """The file's own id of a record; its record_id where the record is not known."""
    return texts[record]["source_ids"][0] if record in texts else record


def _evidence(
    home: Home,
    dataset: DatasetVersion,
    manifest: Manifest,
    name: str,
    reader: LanguageModel | None,
) -> Evidence | None:
    """What near prompts say, from the kernel that the subset was chosen with."""
    if manifest.fingerprint is None:
        return None
    options = manifest.request["options"]
    asked = {key: options[key] for key in ("embedder", "floor") if key in options}
    if not traits_of(manifest.request["selector"]).weighs_trust:
        asked = {}
    if asked.get("embedder") == MODEL and reader is None:
        said = "trust was read from the model's own embeddings here: name the model"
        raise Refused(Fault(said, field="--model"))
    try:
        block = load_block(home, dataset.version, manifest.fingerprint, "neighbours")
    except (Refused, DeliftError):
        return None
    return evidence_of(trust_of(block, dataset.pool, **asked, model=reader), name, NEIGHBOURS)


def _with_texts(evidence: Evidence, texts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **evidence.as_json(),
        "neighbours": [
            {**asdict(one), "disagrees": one.disagrees, **_shown(one.record_id, texts)}
            for one in evidence.neighbours
        ],
    }


def _changes(
    home: Home,
    version: str,
    manifest: Manifest,
    reader: LanguageModel | None,
    texts: Mapping[str, Mapping[str, Any]],
    evidence: Evidence | None,
) -> list[TokenChange]:
    """Change of log p of each answer token of the record after each neighbour, in nats."""
    if evidence is None or manifest.fingerprint is None:
        return []
    name = evidence.record_id
    if reader is None:
        return kept_changes(home, version, manifest.fingerprint, name)
    near = [one.record_id for one in evidence.neighbours]
    return token_changes(reader, texts, {name: near})[name]
