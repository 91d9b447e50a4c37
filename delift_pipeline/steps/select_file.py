"""`delift select`: a file in, the part worth training on out; no versions, no Dagster."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from delift_pipeline.arms import PlanOptions, load_arms
from delift_pipeline.errors import Fault, Refused, fault_counts
from delift_pipeline.progress import Progress, tracked
from delift_pipeline.records.kept_columns import file_columns
from delift_pipeline.records.left_out import faults_beside, left_out_notes, write_faults
from delift_pipeline.records.read import RecordsFile, first_input, read_parts, write_chosen
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.neighbours import Neighbours, embed, nearest, prompt_texts
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.plan import build_plan, neighbour_block
from delift_pipeline.selection.balance import balance, vanished
from delift_pipeline.selection.budget import parse_budget
from delift_pipeline.selection.diagnostics import diagnosed
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import needs_of, options_of
from delift_pipeline.selection.replay import replay_schedule
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.run import refuse_impossible, select
from delift_pipeline.selection.scorable import (
    refuse_beyond_scorable,
    refuse_unscorable,
    replay_of,
    unscorable_notes,
)
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.steps.ahead import announce_pairs
from delift_pipeline.steps.file_reasons import reasons_text
from delift_pipeline.steps.file_selection import Report, Request
from delift_pipeline.steps.reading import announce_reading
from delift_pipeline.steps.rule_files import (
    refuse_infeasible,
    rules_of_files,
    with_columns_of,
)
from delift_pipeline.steps.score_file import Scored, encode_records, score_plan
from delift_pipeline.steps.tokens import counted
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.output import write_output
from delift_pipeline.training.influence import LowRankGradients
from delift_pipeline.utility.block import Block
from delift_pipeline.utility.kernel import build_kernel, load_block

if TYPE_CHECKING:
    from delift_pipeline.prompts.encoded import EncodedRecords

SCRATCH = "selected"
SHOWN_IDS = 5


@dataclass(frozen=True)
class Sets:
    """The records to choose from and those they are chosen for.

    Attributes:
        stage: The stage.
        file: The pool's file, to write chosen rows back unchanged.
        pool: D; in the continual stage the file's records that are not among the existing ones.
        target: D_T, or None.
        existing: D_E, or None.
        existing_file: The file of D_E, to write replayed rows back, or None.
        left_out: Faulty rows left out of all files.
        faults: Why they were.
        notes: What the user should know about how the files were read.
    """

    stage: Stage
    file: RecordsFile
    pool: pl.DataFrame
    target: pl.DataFrame | None
    existing: pl.DataFrame | None
    existing_file: RecordsFile | None
    left_out: int
    faults: list[Fault]
    notes: list[str]

    @property
    def whole(self) -> pl.DataFrame:
        """D and D_E together."""
        return self.pool if self.existing is None else pl.concat([self.pool, self.existing])

    @property
    def everything(self) -> pl.DataFrame:
        """D, D_T and D_E together, each record once."""
        frames = [frame for frame in (self.pool, self.target, self.existing) if frame is not None]
        return pl.concat(frames).unique("record_id", keep="first", maintain_order=True)


def select_file(home: Home, request: Request, model: ModelOptions, progress: Progress) -> Report:
    """Choose records of a file and write them, in rank order, and perhaps the reasons.

    Raises:
        Refused: files, options or the model cannot be used; nothing is written.
        DeliftError: scoring failed.
    """
    started = time.monotonic()
    announce_reading((request.file, request.target, request.existing), progress)
    sets = _read(request)
    columns = file_columns(sets.pool, sets.file, request.balance, "--balance")
    options = options_of(request.selector, request.options)
    needs = needs_of(request.selector, sets.stage, options)
    planned = load_arms(home).plan
    pool, rules = _ruled(request, sets, model)
    fingerprint = fingerprint_of(model).digest
    reader = LanguageModel(model, home, progress)
    encoded = None
    if needs.scores:
        pairs = _pairs_at_most(sets, needs, planned)
        announce_pairs(home, sets.everything, pairs, model, progress)
        encoded = encode_records(reader.encoder, sets.everything, progress)
        _refuse_unscorable(request, sets, pool, rules, needs, encoded.unscorable)
    with tempfile.TemporaryDirectory() as scratch:
        scored, inputs = None, _inputs(sets)
        if encoded and needs.blocks:
            scored, inputs = _scored(Home(Path(scratch)), sets, needs, reader, planned, encoded)
        if needs.model:
            inputs = replace(inputs, model=reader)
        inputs = replace(inputs, pool=pool, unscorable=encoded.unscorable if encoded else {})
        selection = select(inputs, request.selector, request.budget, request.seed, options, rules)
        selection = diagnosed(inputs, selection, request.seed)
    table = balance(sets.pool, selection.ranking, columns)
    _write(request, sets, selection, reader, inputs.unscorable)
    seconds = time.monotonic() - started
    return _report(request, sets, selection, table, scored, fingerprint, seconds)


def _read(request: Request) -> Sets:
    """Read all files, every fault of all of them at once."""
    read, faults = read_parts(
        {"file": request.file, "target": request.target, "existing": request.existing},
        mapping=request.mapping,
        skip_bad=request.skip_bad,
        ids=request.ids,
    )
    stage, wrong = _stage(request)
    if faults or wrong:
        raise Refused(*wrong, *faults)
    pool = read["file"].frame
    target, existing = _frame(read, "target"), _frame(read, "existing")
    if target is not None:
        _refuse_shared(pool, target)
    if existing is not None:
        pool = pool.join(existing, on="record_id", how="anti", maintain_order="left")
    if pool.is_empty():
        raise Refused(Fault("every record of the file is among the existing ones", field="FILE"))
    return Sets(
        stage=stage,
        file=read["file"],
        pool=pool,
        target=target,
        existing=existing,
        existing_file=read.get("existing"),
        left_out=sum(one.left_out for one in read.values()),
        faults=[fault for one in read.values() for fault in one.faults],
        notes=list(dict.fromkeys(note for one in read.values() for note in one.notes)),
    )


def _ruled(request: Request, sets: Sets, model: ModelOptions) -> tuple[pl.DataFrame, Rules]:
    """The pool with the columns that budget and quotas are on, and the rules in record_ids.

    Raises:
        Refused: the budget or the rules are not possible; nothing is scored before.
    """
    rules, n = rules_of_files(request.rules, sets.pool, request.mapping), sets.pool.height
    ruled = rules != Rules()
    allowed = refuse_impossible(
        request.selector, sets.stage, request.budget, ruled, n, request.options
    )
    pool = with_columns_of(sets.pool, sets.file, [quota.column for quota in rules.quotas])
    pool = counted(pool, request.budget, model)
    if ruled:
        refuse_infeasible(rules, pool, allowed)
    return pool, rules


def _refuse_unscorable(
    request: Request,
    sets: Sets,
    pool: pl.DataFrame,
    rules: Rules,
    needs: Needs,
    unscorable: Mapping[str, str],
) -> None:
    """Refuse what more records would have to be scored for than can be, before any is.

    Raises:
        Refused: no record can be scored, or the budget or a rule asks for more than can be.
    """
    refuse_unscorable(pool, unscorable, "records of the file")
    if needs.target_pairs and sets.target is not None:
        refuse_unscorable(sets.target, unscorable, "target records")
    share, replayable = replay_of(
        request.selector, sets.stage, request.options, sets.existing, unscorable
    )
    refuse_beyond_scorable(pool, unscorable, request.budget, share, replayable)
    if rules != Rules():
        allowed = parse_budget(request.budget, pool.height)
        scorable = sum(record not in unscorable for record in pool["record_id"])
        new = replay_schedule(allowed.count, share, scorable, replayable).new
        refuse_infeasible(rules, pool, replace(allowed, count=new), unscorable)


def _frame(read: Mapping[str, RecordsFile], name: str) -> pl.DataFrame | None:
    return read[name].frame if name in read else None


def _stage(request: Request) -> tuple[Stage, list[Fault]]:
    """The stage asked for, or the one that fits the files given, and what contradicts it."""
    fitting = "instruction_tuning"
    if request.target is not None:
        fitting = "task_specific"
    if request.existing is not None:
        fitting = "continual"
    stage = request.stage or fitting
    faults = []
    if stage not in STAGES:
        reason = f"{stage!r} is no stage; there are: {', '.join(STAGES)}"
        return "instruction_tuning", [Fault(reason, field="--stage")]
    for needed, name in (("task_specific", "target"), ("continual", "existing")):
        given = getattr(request, name) is not None
        if stage == needed and not given:
            faults.append(Fault(f"the stage {stage} needs --{name} FILE", field="--stage"))
        if stage != needed and given:
            reason = f"is read in the stage {needed} only, not in {stage}"
            faults.append(Fault(reason, field=f"--{name}"))
    return cast(Stage, stage), faults


def _refuse_shared(pool: pl.DataFrame, target: pl.DataFrame) -> None:
    shared = target.filter(pl.col("record_id").is_in(pool["record_id"].implode()))
    if shared.height:
        named = ", ".join(shared["source_ids"].list.first().head(SHOWN_IDS))
        reason = f"shares {shared.height} records with the pool (first: {named}); take them out"
        raise Refused(Fault(reason, field="--target"))


def _scored(
    scratch: Home,
    sets: Sets,
    needs: Needs,
    reader: LanguageModel,
    options: PlanOptions,
    encoded: "EncodedRecords",
) -> tuple[Scored, SelectionInputs]:
    """Score the pairs the selector reads, and build their kernel in a scratch folder."""
    whole = sets.whole if needs.existing_records else sets.pool
    plan, beside = _planned(whole, sets, needs, options, reader.progress)
    scored = score_plan(
        reader.home, reader.options, sets.everything, plan, reader.progress, encoded
    )
    fingerprint = reader.fingerprint
    build_kernel(
        scratch,
        SCRATCH,
        fingerprint,
        scored.store,
        plan,
        unscorable=scored.unscorable,
        neighbours=beside,
    )

    def block(name: str, form: Any) -> Block:
        return load_block(scratch, SCRATCH, fingerprint, name, form)

    return scored, replace(_inputs(sets), block=block, whole=whole)


def _pairs_at_most(sets: Sets, needs: Needs, options: PlanOptions) -> int:
    """How many pairs are scored at most, before the near ones are found."""
    n, existing = sets.pool.height, 0 if sets.existing is None else sets.existing.height
    whole = sets.whole.height if needs.existing_records else n
    near = whole * min(whole - 1, 2 * options.neighbours)
    pairs = {"none": 0, "neighbours": near, "all": n * n}[needs.self_pairs]
    if needs.target_pairs and sets.target is not None:
        pairs += sets.target.height * n
    pairs += n * existing if needs.existing_pairs else 0
    return pairs + (existing * existing if needs.replay_pairs else 0)


def _planned(
    whole: pl.DataFrame, sets: Sets, needs: Needs, options: PlanOptions, progress: Progress
) -> tuple[PairPlan, PairBlock | None]:
    """The pairs to score, and near pairs as a block of their own for the trust of the picks."""
    near: Neighbours | None = None
    if needs.self_pairs != "none":
        embeddings = embed(prompt_texts(whole), options.embedder)
        with tracked(progress, "near prompts", whole.height, "records") as meter:
            near = nearest(embeddings, options.neighbours, meter.advance)
    plan = build_plan(
        whole,
        sets.target,
        sets.existing,
        self_pairs=needs.self_pairs,
        target_pairs=needs.target_pairs,
        existing_pairs=needs.existing_pairs,
        neighbours=near,
        replay=sets.existing if needs.replay_pairs else None,
    )
    beside = neighbour_block(tuple(whole["record_id"]), near) if near else None
    return plan, beside


def _inputs(sets: Sets) -> SelectionInputs:
    """What is chosen from, before anything is scored."""
    return SelectionInputs(
        stage=sets.stage,
        pool=sets.pool,
        existing=() if sets.existing is None else tuple(sets.existing["record_id"]),
        existing_records=sets.existing,
        target=sets.target,
        gradients=LowRankGradients(),
    )


def _write(
    request: Request,
    sets: Sets,
    selection: Selection,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> None:
    file = sets.file if selection.replayed is None else _with_existing(sets)
    write_chosen(request.out, file, selection.ranking, first_input(request.file))
    if sets.faults:
        write_faults(faults_beside(request.out, first_input(request.file)), sets.faults)
    if request.why is not None:
        reasons = reasons_text(selection, sets.pool, sets.whole, reader, unscorable)
        write_output(request.why, reasons.encode("utf-8"))


def _with_existing(sets: Sets) -> RecordsFile:
    """The pool's rows and those of the existing records, which may be replayed."""
    file, other = sets.file, sets.existing_file
    if other is None:
        return file
    raw = None if file.raw is None or other.raw is None else [*file.raw, *other.raw]
    # Where both files hold a record, the later place is the one that is looked up.
    return replace(
        file,
        frame=pl.concat([file.frame, other.frame]),
        rows=[*file.rows, *other.rows],
        raw=raw,
        schema=None,
    )


def _folded_note(file: RecordsFile) -> list[str]:
    """How many records repeat an earlier one, and an example by their own ids."""
    if not file.folded:
        return []
    record = file.frame.filter(pl.col("copies") > 1).row(0, named=True)
    first, *others = record["source_ids"][: SHOWN_IDS + 1]
    example = f"{', '.join(others)} into {first}" if others else f"all rows with the id {first}"
    return [
        f"{file.folded:,} of {file.read:,} rows repeat the prompt and answer of an earlier row and "
        f"were folded into it (for example {example})"
    ]


def _report(
    request: Request,
    sets: Sets,
    selection: Selection,
    table: pl.DataFrame,
    scored: Scored | None,
    fingerprint: str,
    seconds: float,
) -> Report:
    listed = faults_beside(request.out, first_input(request.file)) if sets.faults else None
    notes = [
        *left_out_notes(sets.faults, sets.left_out, listed),
        *sets.notes,
        *_folded_note(sets.file),
        *selection.notes,
    ]
    for what, frame in (("target records", sets.target), ("existing records", sets.existing)):
        if scored and frame is not None:
            notes += unscorable_notes(frame, scored.unscorable, what)
    if scored:
        notes += [
            f"{count:,} records were shortened for scoring ({kind}); they are written whole"
            for kind, count in scored.cuts.items()
        ]
    return Report(
        pool=sets.pool.height,
        selected=len(selection.ranking),
        stage=sets.stage,
        selector=request.selector,
        objective=selection.value,
        objective_random=selection.value_random,
        budget=str(request.budget),
        tokens=selection.details.get("tokens"),
        knee=selection.details.get("knee"),
        pairs_scored=scored.pairs_scored if scored else 0,
        pairs_reused=scored.pairs_reused if scored else 0,
        folded=sets.file.folded,
        left_out=sets.left_out,
        faults=fault_counts(sets.faults),
        faults_file=str(listed) if listed else None,
        unscorable=len(scored.unscorable) if scored else 0,
        cuts=scored.cuts if scored else {},
        seconds=round(seconds, 3),
        fingerprint=fingerprint,
        out=str(request.out),
        why=str(request.why) if request.why else None,
        notes=tuple(notes),
        diagnostics=selection.diagnostics.as_json() if selection.diagnostics else {},
        balance=table.to_dicts(),
        said=(*(selection.diagnostics.lines() if selection.diagnostics else ()), *vanished(table)),
    )
