"""`delift select`: the stages of the graph, run on files in a temporary home."""

import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest
from delift_pipeline.core.output import write_output
from delift_pipeline.core.progress import Progress
from delift_pipeline.records.extra_columns import COLUMNS_FILE, file_columns, text_series
from delift_pipeline.records.left_out import faults_path, write_faults
from delift_pipeline.records.read import first_input, read_parts, read_records, write_records
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.constraints import Tracker
from delift_pipeline.selection.diagnostics import balance
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules, records_named
from delift_pipeline.selection.run import refuse_impossible, refuse_unscorable
from delift_pipeline.selection.scored import replay_schedule
from delift_pipeline.selection.selector import Needs
from delift_pipeline.stages.ahead import announce_pairs, announce_reading
from delift_pipeline.stages.arms import Arm, PlanOptions, load_arms
from delift_pipeline.stages.cost import with_token_counts
from delift_pipeline.stages.file_selection import (
    SHOWN_IDS,
    Report,
    Request,
    Sets,
    reasons_text,
    report_of,
)
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.score import encode_records, score_version
from delift_pipeline.stages.subset import make_subset, refuse_beyond_scored

FILE, EXISTING = "file", "existing"
"""Versions of the temporary home: the files of the pool, and the records trained on already."""


def select_file(home: Home, request: Request, model: ModelOptions, progress: Progress) -> Report:
    """Choose records of a file and write them, in rank order, and perhaps the reasons.

    The files become a dataset version of a temporary home, which shares the scores of `home`.

    Raises:
        Refused: files, options or the model cannot be used; nothing is written.
        DeliftError: scoring failed.
    """
    started = time.monotonic()
    announce_reading((request.file, request.target, request.existing), progress)
    sets = _read(request)
    file, pool = sets.read["file"], sets.pool
    columns = file_columns(pool, file, request.balance, "--balance")
    needs = needs_of(request.selector, sets.stage, request.options)
    # Every pair of a file may be scored, however large it is.
    arms = load_arms(home)
    plan = arms.plan.model_copy(update={"coverage": "auto", "dense_limit": sys.maxsize})
    rules = _rules(request, pool)
    named = dict.fromkeys(quota.column for quota in rules.quotas)
    beyond = [name for name in named if name not in pool.columns]
    kept = text_series(file_columns(pool, file, beyond, "--quota"))
    arm = Arm.model_construct(
        name=f"{sets.stage}.{request.selector}",
        budget=request.budget,
        seed=request.seed,
        options=dict(request.options),
        rules=request.rules.model_copy(update={"pin": rules.pin, "exclude": rules.ban}),
    )
    # What cannot be kept to is refused before anything is scored.
    counted, ruled = pool.with_columns(kept), rules != Rules()
    allowed = refuse_impossible(
        request.selector, sets.stage, request.budget, ruled, pool.height, request.options
    )
    if ruled:
        counted = with_token_counts(counted, arm.budget, model)
        _refuse_infeasible(rules, counted, allowed)
    reader = LanguageModel(model, home, progress)
    fingerprint, encoded, scored = reader.fingerprint, None, None
    if needs.scores:
        pairs = _pairs_at_most(sets, needs, plan)
        announce_pairs(home, sets.everything, pairs, model, progress)
        encoded = encode_records(reader.encoder, sets.everything, progress)
        bad, what = encoded.unscorable, "records of the file"
        share, replayable = refuse_beyond_scored(arm, pool, sets.existing, bad, what)
        if needs.target_pairs and sets.target is not None:
            refuse_unscorable(sets.target, bad, "target records")
        if ruled:
            scorable = sum(record not in bad for record in pool["record_id"])
            new = replay_schedule(allowed.count, share, scorable, replayable).new
            _refuse_infeasible(rules, counted, replace(allowed, count=new), bad)
    unscorable = encoded.unscorable if encoded is not None else {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Home(Path(scratch), shared=home)
        _store(work, sets, needs, kept)
        if needs.blocks:
            arms = replace(arms, plan=plan, arms=(arm,))
            plan_pairs(work, FILE, arms, progress=progress, near_for_trust=False)
            scored = score_version(
                work, FILE, "in_context", model, progress, with_baseline=True, encoded=encoded
            )
            make_kernel(work, FILE, model)
        chosen = make_subset(work, FILE, arm, model, reader=reader, unscorable=unscorable)
    selection = chosen.selection
    assert selection is not None  # nothing is found in a temporary home
    table = balance(pool, selection.ranking, columns)
    _write(request, sets, selection, reader, unscorable)
    seconds = time.monotonic() - started
    report = scored.report if scored else None
    return report_of(request, sets, selection, table, report, fingerprint, seconds)


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
    pool, target, existing = (
        read[name].frame if name in read else None for name in ("file", "target", "existing")
    )
    assert pool is not None
    if target is not None:
        shared = target.filter(pl.col("record_id").is_in(pool["record_id"].implode()))
        if shared.height:
            named = ", ".join(shared["source_ids"].list.first().head(SHOWN_IDS))
            reason = f"shares {shared.height} records with the pool (first: {named}); take them out"
            raise Refused(reason, field="--target")
    if existing is not None:
        pool = pool.join(existing, on="record_id", how="anti", maintain_order="left")
    if pool.is_empty():
        raise Refused("every record of the file is among the existing ones", field="FILE")
    return Sets(stage, read, pool, target, existing)


def _stage(request: Request) -> tuple[Stage, list[Fault]]:
    """The stage asked for, or the one that fits the files given, and what contradicts it."""
    files = (
        ("task_specific", "target", request.target is not None),
        ("continual", "existing", request.existing is not None),
    )
    fitting = ["instruction_tuning", *(needed for needed, _, given in files if given)]
    stage = request.stage or fitting[-1]
    if stage not in STAGES:
        reason = f"{stage!r} is no stage; there are: {', '.join(STAGES)}"
        return "instruction_tuning", [Fault(reason, field="--stage")]
    faults = []
    for needed, name, given in files:
        if stage == needed and not given:
            faults.append(Fault(f"the stage {stage} needs --{name} FILE", field="--stage"))
        if stage != needed and given:
            reason = f"is read in the stage {needed} only, not in {stage}"
            faults.append(Fault(reason, field=f"--{name}"))
    return cast(Stage, stage), faults


def _rules(request: Request, pool: pl.DataFrame) -> Rules:
    """The rules in record_ids, where a pin or an exclusion may also be a file of records.

    What is excluded by a file need not be in the pool: such a file often holds more.

    Raises:
        Refused: a file cannot be read, or a record pinned in, or excluded by id, is not there.
    """
    ids: dict[str, tuple[str, ...]] = {}
    in_files: dict[str, list[str]] = {}
    for name, given in (("pin", request.rules.pin), ("exclude", request.rules.exclude)):
        files = [one for one in given if Path(one).is_file()]
        ids[name] = tuple(one for one in given if one not in files)
        read = [read_records(Path(f), mapping=request.mapping, all_mapped=False) for f in files]
        in_files[name] = [record for one in read for record in one.frame["record_id"]]
    named, known = request.rules.model_copy(update=ids).rules(pool), set(pool["record_id"])
    pinned = records_named(pool, in_files["pin"], "pin")
    banned = [record for record in in_files["exclude"] if record in known]
    pin, ban = dict.fromkeys((*named.pin, *pinned)), dict.fromkeys((*named.ban, *banned))
    return Rules(tuple(pin), tuple(ban), named.quotas)


def _refuse_infeasible(
    rules: Rules, pool: pl.DataFrame, budget: Budget, unscorable: Collection[str] = ()
) -> None:
    """Refuse rules that no subset of the pool's scorable records keeps to."""
    ids = tuple(record for record in pool["record_id"] if record not in unscorable)
    Tracker(rules.resolved(pool, ids, budget), len(ids), budget.count)


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


def _store(home: Home, sets: Sets, needs: Needs, kept: Sequence[pl.Series]) -> None:
    """Store the records as a dataset version, the existing ones as its parent."""
    pool = sets.whole if needs.existing_records else sets.pool
    versions = [(FILE, pool, sets.target, [])]
    if sets.existing is not None:
        versions = [(FILE, pool, sets.target, [EXISTING]), (EXISTING, sets.existing, None, [])]
    for version, records, target, parents in versions:
        details = {"dataset": version, "parents": parents, "coverage": "auto", "existing": "pool"}
        details["target_hash"] = target is not None and digest_text(*target["record_id"])
        folder, parts = home.dataset(version), {"pool": records, "heldout": records.clear()}
        for part, frame in (*parts.items(), ("target", target)):
            if frame is not None:
                write_parquet(folder / f"{part}.parquet", frame)
        # A temporary home holds a version once, so that its name identifies it.
        Manifest(kind="dataset", content_hash=version, details=details).write(folder)
    if kept:
        columns = sets.pool.select("record_id").with_columns(kept)
        write_parquet(home.dataset(FILE) / COLUMNS_FILE, columns)


def _write(
    request: Request,
    sets: Sets,
    selection: Selection,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> None:
    file, source = sets.read["file"], first_input(request.file)
    if selection.replayed is not None:
        # Where both files hold a record, the later place is the one that is looked up.
        other = sets.read["existing"]
        file = replace(
            file,
            frame=pl.concat([file.frame, other.frame]),
            rows=[*file.rows, *other.rows],
            raw=None if file.raw is None or other.raw is None else [*file.raw, *other.raw],
            schema=None,
        )
    write_records(request.out, file, selection.ranking, source)
    if sets.faults:
        write_faults(faults_path(request.out, source), sets.faults)
    if request.why is not None:
        reasons = reasons_text(selection, sets.pool, sets.whole, reader, unscorable)
        write_output(request.why, reasons.encode("utf-8"))
