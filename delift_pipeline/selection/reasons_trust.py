"""Why a record is suspected to be wrong, and which records are nearly the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.selection.embedding import Similarities
from delift_pipeline.selection.trust import SUSPECTED_BELOW, WEIGHT_POWER, Trust

NEAR_DUPLICATE = 0.95
"""Records whose cosine (prompt and answer) reaches this are near duplicates."""
NAMED_NEIGHBOURS = 3

SUSPECT_SCHEMA = pl.Schema(
    {
        "record_id": pl.String(),
        "trust": pl.Float64(),
        "agreement": pl.Float64(),
        "relative": pl.Float64(),
        "selected": pl.Boolean(),
        "neighbours": pl.List(
            pl.Struct(
                {
                    "record_id": pl.String(),
                    "similarity": pl.Float64(),
                    "helps": pl.Float64(),
                    "helped": pl.Float64(),
                }
            )
        ),
    }
)


@dataclass(frozen=True)
class Neighbour:
    """What a near prompt says of a record.

    Attributes:
        record_id: The neighbour.
        similarity: Cosine of the two prompts.
        helps: Utility of the record for the neighbour (U_ij), None where it was not scored.
        helped: Utility of the neighbour for the record (U_ji), None where it was not scored.
    """

    record_id: str
    similarity: float
    helps: float | None
    helped: float | None

    @property
    def disagrees(self) -> bool:
        """Whether the two hurt each other more than they help."""
        return (self.helps or 0.0) + (self.helped or 0.0) < 0


@dataclass(frozen=True)
class Evidence:
    """Trust of one record and the near prompts it was read from, strongest objection first."""

    record_id: str
    trust: float
    agreement: float
    relative: float
    weight: float
    neighbours: tuple[Neighbour, ...] = field(default=())

    @property
    def suspected(self) -> bool:
        """Whether the record is called a suspected wrong one."""
        return self.trust < SUSPECTED_BELOW

    def as_json(self) -> dict[str, Any]:
        """The evidence as plain data."""
        return {**asdict(self), "suspected": self.suspected}


def evidence_of(trust: Trust, record: str, named: int = NAMED_NEIGHBOURS) -> Evidence | None:
    """What near prompts say of a record; None where it was not scored.

    Args:
        trust: Trust of all records.
        record: A record_id.
        named: How many neighbours are named, those that weigh most against it first.
    """
    j = trust.places.get(record)
    if j is None:
        return None
    start, end = trust.weights.indptr[j : j + 2]
    neighbours, said = [], []
    for i, weight in zip(
        trust.weights.indices[start:end], trust.weights.data[start:end], strict=True
    ):
        helps, helped = _scored(trust.utilities, i, j), _scored(trust.utilities, j, i)
        similarity = float(weight) ** (1 / WEIGHT_POWER)
        neighbours.append(Neighbour(trust.ids[i], similarity, helps, helped))
        said.append(weight * ((helps or 0) + (helped or 0)))
    order = np.argsort(said, kind="stable")[:named]
    return Evidence(
        record,
        trust=float(trust.trust[j]),
        agreement=float(trust.agreement[j]),
        relative=float(trust.relative[j]),
        weight=float(trust.weight[j]),
        neighbours=tuple(neighbours[int(place)] for place in order),
    )


def _scored(utilities: Any, i: int, j: int) -> float | None:
    """U_ij, or None where the pair was not scored."""
    start, end = utilities.indptr[j : j + 2]
    place = np.flatnonzero(utilities.indices[start:end] == i)
    return float(utilities.data[start + place[0]]) if len(place) else None


def suspects_frame(trust: Trust, selected: set[str], pool: pl.DataFrame) -> pl.DataFrame:
    """The suspected wrong records of a pool with their evidence, least trusted first."""
    known = set(pool["record_id"])
    order = np.argsort(trust.trust, kind="stable")
    low = [int(j) for j in order if trust.trust[j] < SUSPECTED_BELOW and trust.ids[j] in known]
    rows = [
        {**asdict(one), "selected": one.record_id in selected}
        for j in low
        if (one := evidence_of(trust, trust.ids[j])) is not None
    ]
    return pl.DataFrame(rows, schema=SUSPECT_SCHEMA)


def near_duplicates(similar: Similarities, threshold: float = NEAR_DUPLICATE) -> dict[str, int]:
    """record_id -> number of its group, for records that have a near duplicate.

    Groups are chains: a record belongs to a group where it is that similar to one member of it.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    near = csr_matrix(similar.matrix >= np.float32(threshold))
    _, labels = connected_components(near, directed=False)
    _, first, counts = np.unique(labels, return_index=True, return_counts=True)
    groups = {int(labels[f]): number for number, f in enumerate(np.sort(first[counts > 1]))}
    return {
        record: groups[int(label)]
        for record, label in zip(similar.ids, labels, strict=True)
        if int(label) in groups
    }


def text_of(records: Mapping[str, Mapping[str, Any]], record: str, length: int = 200) -> str:
    """A record on one line, `prompt -> answer`, shortened; its id where its text is not known."""
    row = records.get(record)
    if row is None:
        return record
    prompt = " ".join(part for part in (row["instruction"], row["input"]) if part)
    text = " ".join(f"{prompt} -> {row['output']}".split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
