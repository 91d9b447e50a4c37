"""What `delift select` is asked for, what it reads, and what it answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from delift_pipeline.core.errors import Fault, fault_counts
from delift_pipeline.core.output import json_text
from delift_pipeline.records.left_out import faults_path, left_out_notes
from delift_pipeline.records.read import Ids, Inputs, RecordsFile, first_input
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.selection.diagnostics import vanished
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.result import Selection, subset_frames
from delift_pipeline.selection.rules import RuleOptions
from delift_pipeline.selection.run import unscorable_notes
from delift_pipeline.selection.token_changes import MOST_RECORDS, token_changes
from delift_pipeline.selection.trust import evidence_of, text_of

SHOWN_IDS = 5


@dataclass(frozen=True)
class Request:
    """What `delift select` was asked for.

    Attributes:
        file: The pool: a file, a folder of files, or several.
        target: Examples of the task to choose for, or None.
        existing: Records the model is trained on already, or None.
        stage: None takes the one that fits what is given.
        budget: A share, a count, `full`, tokens or `auto`, as typed.
        mapping: Column by field.
        skip_bad: Leave faulty rows out and list their faults beside `out`.
        out: Where the chosen records go.
        why: Where the reasons go, or None.
        balance: Columns of the file to compare pool and subset by, beside task and source.
        rules: Records pinned in or out (ids or files), quotas and caps.
        ids: `ignore` drops the files' own ids.
    """

    file: Inputs
    selector: str
    budget: str
    out: Path
    target: Path | None = None
    existing: Path | None = None
    stage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    mapping: Mapping[str, str] | None = None
    skip_bad: bool = False
    why: Path | None = None
    balance: tuple[str, ...] = ()
    rules: RuleOptions = field(default_factory=RuleOptions)
    ids: Ids = "keep"


@dataclass(frozen=True)
class Sets:
    """The records to choose from and those they are chosen for.

    Attributes:
        read: The files by name (`file`, `target`, `existing`), to write chosen rows back unchanged.
        pool: D; in the continual stage the file's records that are not among the existing ones.
        target: D_T, or None.
        existing: D_E, or None.
    """

    stage: Stage
    read: Mapping[str, RecordsFile]
    pool: pl.DataFrame
    target: pl.DataFrame | None
    existing: pl.DataFrame | None

    @property
    def whole(self) -> pl.DataFrame:
        """D and D_E together."""
        return self.pool if self.existing is None else pl.concat([self.pool, self.existing])

    @property
    def everything(self) -> pl.DataFrame:
        """D, D_T and D_E together, each record once."""
        frames = [frame for frame in (self.pool, self.target, self.existing) if frame is not None]
        return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)

    @property
    def left_out(self) -> int:
        """Faulty rows left out of all files."""
        return sum(file.left_out for file in self.read.values())

    @property
    def faults(self) -> list[Fault]:
        """Why they were."""
        return [fault for file in self.read.values() for fault in file.faults]


@dataclass(frozen=True)
class Report:
    """What was chosen, at what cost.

    Attributes:
        facts: The report as one JSON document.
        said: What is said of it besides; it follows from the numbers.
    """

    facts: dict[str, Any]
    said: tuple[str, ...]

    def text(self) -> str:
        """The report for people."""
        facts = self.facts
        lines = [
            f"{facts['selected']:,} of {facts['pool']:,} records ({facts['stage']}): {facts['out']}"
        ]
        if facts["objective"] is not None:
            lines.append(
                f"objective: chosen {facts['objective']:.4f}, random subsets of this size "
                f"{facts['objective_random']:.4f}"
            )
        if facts["tokens"] is not None:
            lines.append(f"{facts['tokens']:,} tokens, budget {facts['budget']}")
        if facts["knee"] is not None:
            lines.append(f"knee of the gain curve: after {facts['knee']:,} records")
        scored, reused = facts["pairs_scored"], facts["pairs_reused"]
        lines.append(
            f"{scored:,} pairs scored, {reused:,} reused from the store, {facts['seconds']:.1f} s"
        )
        if facts["why"]:
            lines.append(f"reasons: {facts['why']}")
        return "\n".join(lines)


def report_of(
    request: Request,
    sets: Sets,
    selection: Selection,
    table: pl.DataFrame,
    scored: ScoreReport | None,
    fingerprint: str,
    seconds: float,
) -> Report:
    """Put the report together.

    `table` compares pool and subset group by group; `scored` is None where no score was read.
    """
    file, faults = sets.read["file"], sets.faults
    listed = faults_path(request.out, first_input(request.file)) if faults else None
    notes = left_out_notes(faults, sets.left_out, listed)
    notes += dict.fromkeys(note for one in sets.read.values() for note in one.notes)
    if file.folded:
        record = file.frame.filter(pl.col("copies") > 1).row(0, named=True)
        first, *others = record["source_ids"][: SHOWN_IDS + 1]
        example = f"{', '.join(others)} into {first}" if others else f"all rows with the id {first}"
        notes.append(
            f"{file.folded:,} of {file.read:,} rows repeat the prompt and answer of an earlier row "
            f"and were folded into it (for example {example})"
        )
    notes += selection.notes
    if scored is not None:
        for what, frame in (("target records", sets.target), ("existing records", sets.existing)):
            notes += [] if frame is None else unscorable_notes(frame, scored.unscorable, what)
        notes += [
            f"{count:,} records were shortened for scoring ({kind}); they are written whole"
            for kind, count in scored.cuts.items()
        ]
    diagnostics = selection.diagnostics
    facts = {
        "pool": sets.pool.height,
        "selected": len(selection.ranking),
        "stage": sets.stage,
        "selector": request.selector,
        "objective": selection.value,
        "objective_random": selection.value_random,
        "budget": str(request.budget),
        "tokens": selection.details.get("tokens"),
        "knee": selection.details.get("knee"),
        "pairs_scored": scored.pairs_scored if scored else 0,
        "pairs_reused": scored.pairs_reused if scored else 0,
        "folded": file.folded,
        "left_out": sets.left_out,
        "faults": fault_counts(faults),
        "faults_file": str(listed) if listed else None,
        "unscorable": len(scored.unscorable) if scored else 0,
        "cuts": dict(scored.cuts) if scored else {},
        "seconds": round(seconds, 3),
        "fingerprint": fingerprint,
        "out": str(request.out),
        "why": str(request.why) if request.why else None,
        "notes": notes,
        "diagnostics": diagnostics.as_json() if diagnostics else {},
        "balance": table.to_dicts(),
    }
    said = (*(diagnostics.lines() if diagnostics else ()), *vanished(table))
    return Report(facts, said)


def reasons_text(
    selection: Selection,
    pool: pl.DataFrame,
    whole: pl.DataFrame,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> str:
    """One JSON line a record: the chosen in rank order, then the dropped in file order.

    `suspected` holds the near prompts that speak most against a record with little trust, and is
    null where nothing is suspected; of the `MOST_RECORDS` least trusted each of them says with
    `tokens` what it does to the record's answer. In `near_duplicates` stand the other records of
    its group. `unscorable` says why a record could not be scored, and is null where it could.
    """
    subset, dropped = subset_frames(selection, pool)
    rows = [*subset.iter_rows(named=True), *dropped.iter_rows(named=True)]
    texts = {row["record_id"]: row for row in whole.iter_rows(named=True)}
    groups: dict[int, list[str]] = {}
    for record, group in selection.duplicates.items():
        groups.setdefault(group, []).append(record)
    trust, ids = selection.trust, [row["record_id"] for row in rows]
    found = [] if trust is None else [evidence_of(trust, record) for record in ids]
    suspects = {one.record_id: one for one in found if one is not None and one.suspected}
    least = sorted(suspects.values(), key=lambda one: (one.trust, one.record_id))[:MOST_RECORDS]
    disagreeing = {
        one.record_id: [near.record_id for near in one.neighbours if near.disagrees]
        for one in least
    }
    changes = token_changes(reader, texts, disagreeing)
    for row in rows:
        name = row["record_id"]
        others, evidence = groups.get(row["near_duplicates"], ()), suspects.get(name)
        tokens = {one.record_id: one.as_json() for one in changes.get(name, ())}
        row["near_duplicates"] = [record for record in others if record != name]
        row["text"] = text_of(texts, name)
        row["unscorable"] = unscorable.get(name)
        row["suspected"] = evidence and [
            {
                **asdict(near),
                "disagrees": near.disagrees,
                "text": text_of(texts, near.record_id),
                "tokens": tokens.get(near.record_id),
            }
            for near in evidence.neighbours
        ]
    return "".join(f"{json_text(row)}\n" for row in rows)
