"""The request of `delift select`, the records that it reads, and its report."""

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
from delift_pipeline.selection.contribution import changed_picks_sentence
from delift_pipeline.selection.diagnostics import vanished_group_warnings
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.registry import options_of
from delift_pipeline.selection.result import Selection, subset_frames
from delift_pipeline.selection.rules import RuleOptions
from delift_pipeline.selection.run import CHANGED, unscorable_notes
from delift_pipeline.selection.token_changes import MOST_RECORDS, token_changes
from delift_pipeline.selection.trust import evidence_of, record_line

MOST_IDS = 5


@dataclass(frozen=True)
class Request:
    """A request to choose records from files.

    Attributes:
        file: The pool: a file, a folder of files, or several of these.
        target: Example records of the task to choose for, or None.
        existing: Records that the model was already trained on, or None.
        stage: The fine-tuning stage. None takes the stage that fits the other files.
        pairs: How many near prompts of each record are scored with it; 0 scores no pairs. None
            takes the number from the arms of the home.
        budget: A share, a count, a number of tokens, `full` or `auto`, as the user typed it.
        mapping: The column of the file for each field.
        skip_bad: Leave faulty rows out, and list their faults in a file next to `out`.
        out: The file to write the chosen records to.
        why: The file to write the reasons to, or None.
        balance: Columns to compare pool and subset by, in addition to task and source.
        rules: Pinned and excluded records (ids or files), quotas and caps.
        ids: `ignore` drops the source ids of the files.
    """

    file: Inputs
    selector: str
    budget: str
    out: Path
    target: Path | None = None
    existing: Path | None = None
    stage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int | None = None
    seed: int = 0
    mapping: Mapping[str, str] | None = None
    skip_bad: bool = False
    why: Path | None = None
    balance: tuple[str, ...] = ()
    rules: RuleOptions = field(default_factory=RuleOptions)
    ids: Ids = "keep"


@dataclass(frozen=True)
class Sets:
    """The records to choose from, and those they are chosen for.

    Attributes:
        read: The files by name (`file`, `target`, `existing`), to write chosen rows back unchanged.
        pool: The pool D. In the continual stage it leaves out records that exist already.
        target: The target set D_T, or None.
        existing: The existing records D_E, or None.
    """

    stage: Stage
    read: Mapping[str, RecordsFile]
    pool: pl.DataFrame
    target: pl.DataFrame | None
    existing: pl.DataFrame | None

    @property
    def pool_and_existing(self) -> pl.DataFrame:
        """D and D_E together."""
        return self.pool if self.existing is None else pl.concat([self.pool, self.existing])

    @property
    def all_records(self) -> pl.DataFrame:
        """D, D_T and D_E together, each record once."""
        frames = [frame for frame in (self.pool, self.target, self.existing) if frame is not None]
        return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)

    @property
    def left_out(self) -> int:
        """How many faulty rows of all files are left out."""
        return sum(file.left_out for file in self.read.values())

    @property
    def faults(self) -> list[Fault]:
        """The faults of these rows."""
        return [fault for file in self.read.values() for fault in file.faults]


@dataclass(frozen=True)
class Report:
    """What was chosen, and what it cost.

    Attributes:
        facts: The report as one JSON document.
        sentences: Further sentences for people, which follow from the numbers.
    """

    facts: dict[str, Any]
    sentences: tuple[str, ...]

    def text(self) -> str:
        """Return the report for people."""
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
            plural = "" if facts["knee"] == 1 else "s"
            lines.append(f"knee of the gain curve: after {facts['knee']:,} record{plural}")
        scored, reused = facts["pairs_scored"], facts["pairs_reused"]
        lines.append(
            f"{scored:,} pairs scored, {reused:,} reused from the store, {facts['seconds']:.1f} s"
        )
        lines.append(f"prompt template: {facts['template']}")
        if facts["why"]:
            lines.append(f"reasons: {facts['why']}")
        return "\n".join(lines)


def build_report(
    request: Request,
    sets: Sets,
    selection: Selection,
    table: pl.DataFrame,
    scored: ScoreReport | None,
    reader: LanguageModel,
    seconds: float,
) -> Report:
    """Build the report of a selection.

    `table` compares pool and subset group by group. `scored` is None if no score was read.
    """
    file, faults = sets.read["file"], sets.faults
    faults_file = faults_path(request.out, first_input(request.file)) if faults else None
    notes = left_out_notes(faults, sets.left_out, faults_file)
    notes += dict.fromkeys(note for one in sets.read.values() for note in one.notes)
    if file.folded:
        record = file.frame.filter(pl.col("copies") > 1).row(0, named=True)
        first, *others = record["source_ids"][: MOST_IDS + 1]
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
    diagnostics, changed = selection.diagnostics, selection.details.get(CHANGED)
    facts = {
        "pool": sets.pool.height,
        "selected": len(selection.ranking),
        "stage": sets.stage,
        "selector": request.selector,
        "objective": selection.value,
        "objective_random": selection.value_random,
        "budget": str(request.budget),
        "picks": list(selection.ranking),
        CHANGED: changed,
        "tokens": selection.details.get("tokens"),
        "knee": selection.details.get("knee"),
        "pairs_scored": scored.pairs_scored if scored else 0,
        "pairs_reused": scored.pairs_reused if scored else 0,
        "folded": file.folded,
        "left_out": sets.left_out,
        "faults": fault_counts(faults),
        "faults_file": str(faults_file) if faults_file else None,
        "unscorable": len(scored.unscorable) if scored else 0,
        "cuts": dict(scored.cuts) if scored else {},
        "seconds": round(seconds, 3),
        "fingerprint": reader.fingerprint,
        "template": reader.template,
        "out": str(request.out),
        "why": str(request.why) if request.why else None,
        "notes": notes,
        "diagnostics": diagnostics.as_json() if diagnostics else {},
        "balance": table.to_dicts(),
    }
    sentences = (*(diagnostics.lines() if diagnostics else ()), *vanished_group_warnings(table))
    if changed is not None:
        options = options_of(request.selector, request.options)
        sentences += (changed_picks_sentence(changed, len(selection.ranking), options),)
    return Report(facts, sentences)


def reasons_text(
    selection: Selection,
    pool: pl.DataFrame,
    pool_and_existing: pl.DataFrame,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> str:
    """Return one JSON line for each record: chosen records by rank, then dropped ones in order.

    `suspected` holds the near prompts that disagree most with a suspected record, and is null for
    other records. For the `MOST_RECORDS` least trusted records, `tokens` says how each near prompt
    changes the tokens of the record's answer. `near_duplicates` holds the other records of its
    group. `unscorable` says why a record cannot be scored, and is null if it can.
    """
    subset, dropped = subset_frames(selection, pool)
    rows = [*subset.iter_rows(named=True), *dropped.iter_rows(named=True)]
    texts = {row["record_id"]: row for row in pool_and_existing.iter_rows(named=True)}
    groups: dict[int, list[str]] = {}
    for record, group in selection.duplicates.items():
        groups.setdefault(group, []).append(record)
    trust, ids = selection.trust, [row["record_id"] for row in rows]
    evidences = [] if trust is None else [evidence_of(trust, record) for record in ids]
    suspects = {one.record_id: one for one in evidences if one is not None and one.is_suspected}
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
        row["text"] = record_line(texts, name)
        row["unscorable"] = unscorable.get(name)
        row["suspected"] = evidence and [
            {
                **asdict(near),
                "disagrees": near.disagrees,
                "text": record_line(texts, near.record_id),
                "tokens": tokens.get(near.record_id),
            }
            for near in evidence.neighbours
        ]
    return "".join(f"{json_text(row)}\n" for row in rows)
