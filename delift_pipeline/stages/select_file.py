"""`delift select`: run the stages of the graph on files, in a temporary home."""

import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import polars as pl

from delift_pipeline.core.atomic import write_parquet
from delift_pipeline.core.errors import Fault, InputError
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
from delift_pipeline.selection.constraints import ConstraintTracker
from delift_pipeline.selection.diagnostics import balance_table
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.ranking import replay_schedule
from delift_pipeline.selection.registry import needs_of, traits_of
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules, resolve_record_ids
from delift_pipeline.selection.run import check_budget, refuse_unscorable
from delift_pipeline.selection.selector import Needs
from delift_pipeline.stages.announce import announce_pairs, announce_reading
from delift_pipeline.stages.arms import Arm, PlanOptions, load_arms
from delift_pipeline.stages.cost import with_token_counts
from delift_pipeline.stages.file_selection import (
    MOST_IDS,
    Report,
    Request,
    Sets,
    build_report,
    reasons_text,
)
from delift_pipeline.stages.kernel import make_kernel
from delift_pipeline.stages.plan import plan_pairs
from delift_pipeline.stages.score import encode_records, score_version
from delift_pipeline.stages.subset import make_subset, refuse_unreachable_budget

FILE, EXISTING = "file", "existing"
"""The versions in the temporary home: the files of the pool, and the existing records."""


def select_file(home: Home, request: Request, model: ModelOptions, progress: Progress) -> Report:
    """Choose records of files, and write them in rank order, with their reasons if asked for.

    The files become a dataset version in a temporary home, which shares the scores of `home`.

    Raises:
        InputError: files, options or the model cannot be used. Nothing is written then.
        DeliftError: scoring failed.
    """
    started = time.monotonic()
    announce_reading((request.file, request.target, request.existing), progress)
    sets = _read_files(request)
    if request.pairs == 0:
        request = _without_pairs(request, sets.stage)
    file, pool = sets.read["file"], sets.pool
    columns = file_columns(pool, file, request.balance, "--balance")
    needs = needs_of(request.selector, sets.stage, request.options)
    # A selector that needs every pair gets it, however large the file is.
    arms = load_arms(home)
    near = request.pairs or arms.plan.neighbours
    settings = {"coverage": "auto", "dense_limit": sys.maxsize, "neighbours": near}
    plan = arms.plan.model_copy(update=settings)
    rules = _record_rules(request, pool)
    quota_columns = dict.fromkeys(quota.column for quota in rules.quotas)
    further = [name for name in quota_columns if name not in pool.columns]
    file_only = text_series(file_columns(pool, file, further, "--quota"))
    arm = Arm.model_construct(
        name=f"{sets.stage}.{request.selector}",
        budget=request.budget,
        seed=request.seed,
        options=dict(request.options),
        rules=request.rules.model_copy(update={"pin": rules.pin, "exclude": rules.exclude}),
    )
    # A budget or a rule that cannot be met is refused before anything is scored.
    counted, has_rules = pool.with_columns(file_only), rules != Rules()
    allowed = check_budget(
        request.selector, sets.stage, request.budget, has_rules, pool.height, request.options
    )
    if has_rules:
        counted = with_token_counts(counted, arm.budget, model)
        _refuse_infeasible(rules, counted, allowed)
    reader = LanguageModel(model, home, progress)
    encoded, report = None, None
    if needs.scores:
        pairs = _most_pairs(sets, needs, plan)
        if pairs:
            announce_pairs(home, sets.all_records, pairs, model, progress)
        encoded = encode_records(reader.encoder, sets.all_records, progress)
        bad, what = encoded.unscorable, "records of the file"
        share, replayable = refuse_unreachable_budget(arm, pool, sets.existing, bad, what)
        if needs.target_pairs and sets.target is not None:
            refuse_unscorable(sets.target, bad, "target records")
        if has_rules:
            scorable = sum(record not in bad for record in pool["record_id"])
            new = replay_schedule(allowed.count, share, scorable, replayable).new_count
            _refuse_infeasible(rules, counted, replace(allowed, count=new), bad)
    unscorable = encoded.unscorable if encoded is not None else {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Home(Path(scratch), shared=home)
        _store_versions(work, sets, needs, file_only)
        if needs.blocks or needs.support:
            arms = replace(arms, plan=plan, arms=(arm,))
            plan_pairs(work, FILE, arms, progress=progress, near_for_trust=False)
        if needs.blocks:
            report = score_version(
                work, FILE, "in_context", model, progress, with_baseline=True, encoded=encoded
            ).report
            make_kernel(work, FILE, model)
        if needs.support:
            # With blocks both parts are scored by now, and this only stores their manifest.
            alone = score_version(work, FILE, "baseline", model, progress, encoded=encoded).report
            if report is None and alone is not None:
                report = replace(alone, pairs_scored=0, pairs_reused=0)
        chosen = make_subset(work, FILE, arm, model, reader=reader, unscorable=unscorable)
    selection = chosen.selection
    assert selection is not None  # a temporary home has no stored subset to reuse
    table = balance_table(pool, selection.ranking, columns)
    _write_outputs(request, sets, selection, reader, unscorable)
    seconds = time.monotonic() - started
    return build_report(request, sets, selection, table, report, reader, seconds)


def _read_files(request: Request) -> Sets:
    """Read all files, and refuse them with the faults of all of them."""
    read, faults = read_parts(
        {"file": request.file, "target": request.target, "existing": request.existing},
        mapping=request.mapping,
        skip_bad=request.skip_bad,
        ids=request.ids,
    )
    stage, stage_faults = _stage_of(request)
    if faults or stage_faults:
        raise InputError(*stage_faults, *faults)
    pool, target, existing = (
        read[name].frame if name in read else None for name in ("file", "target", "existing")
    )
    assert pool is not None
    if target is not None:
        shared = target.filter(pl.col("record_id").is_in(pool["record_id"].implode()))
        if shared.height:
            ids = ", ".join(shared["source_ids"].list.first().head(MOST_IDS))
            reason = f"{shared.height} records are also in the pool (first: {ids}). Remove them"
            raise InputError(reason, field="--target")
    if existing is not None:
        pool = pool.join(existing, on="record_id", how="anti", maintain_order="left")
    if pool.is_empty():
        raise InputError(
            "Every record of the file is in --existing too. Pass new records", field="FILE"
        )
    return Sets(stage, read, pool, target, existing)


def _without_pairs(request: Request, stage: Stage) -> Request:
    """Return the request with options under which its selector scores no pairs.

    Raises:
        InputError: the selector scores pairs at this stage, whatever its options.
    """
    if traits_of(request.selector).weighs_trust:
        options = {"trust": "support", "covers": "prompts", **request.options}
        request = replace(request, options=options)
    if blocks := needs_of(request.selector, stage, request.options).blocks:
        reason = f"{request.selector} scores pairs at the stage {stage} ({', '.join(blocks)})"
        raise InputError(f"{reason}. Leave out --pairs 0", field="--pairs")
    return request


def _stage_of(request: Request) -> tuple[Stage, list[Fault]]:
    """Return the requested stage, or the one that fits the files, and the faults against it."""
    files = (
        ("task_specific", "target", request.target is not None),
        ("continual", "existing", request.existing is not None),
    )
    fitting = ["instruction_tuning", *(needed for needed, _, is_present in files if is_present)]
    stage = request.stage or fitting[-1]
    if stage not in STAGES:
        reason = f"{stage!r} is not a stage. Use one of: {', '.join(STAGES)}"
        return "instruction_tuning", [Fault(reason, field="--stage")]
    faults = []
    for needed, name, is_present in files:
        if stage == needed and not is_present:
            faults.append(Fault(f"the stage {stage} needs --{name} FILE", field="--stage"))
        if stage != needed and is_present:
            reason = f"The stage {stage} does not read this file, only {needed} does. Leave it out"
            faults.append(Fault(reason, field=f"--{name}"))
    return cast(Stage, stage), faults


def _record_rules(request: Request, pool: pl.DataFrame) -> Rules:
    """Return the rules by record_id. The user may pin or exclude by id or by a file of records.

    A file of excluded records may hold records that are not in the pool.

    Raises:
        InputError: a file cannot be read, or the pool lacks a record that is pinned or that is
            excluded by its id.
    """
    ids: dict[str, tuple[str, ...]] = {}
    in_files: dict[str, list[str]] = {}
    for name, texts in (("pin", request.rules.pin), ("exclude", request.rules.exclude)):
        files = [one for one in texts if Path(one).is_file()]
        ids[name] = tuple(one for one in texts if one not in files)
        read = [read_records(Path(f), mapping=request.mapping, all_mapped=False) for f in files]
        in_files[name] = [record for one in read for record in one.frame["record_id"]]
    by_id, known = request.rules.model_copy(update=ids).rules(pool), set(pool["record_id"])
    pinned = resolve_record_ids(pool, in_files["pin"], "pin")
    banned = [record for record in in_files["exclude"] if record in known]
    pin, ban = dict.fromkeys((*by_id.pin, *pinned)), dict.fromkeys((*by_id.exclude, *banned))
    return Rules(tuple(pin), tuple(ban), by_id.quotas)


def _refuse_infeasible(
    rules: Rules, pool: pl.DataFrame, budget: Budget, unscorable: Collection[str] = ()
) -> None:
    """Refuse rules that no subset of the pool's scorable records can meet."""
    ids = tuple(record for record in pool["record_id"] if record not in unscorable)
    ConstraintTracker(rules.resolve(pool, ids, budget), len(ids), budget.count)


def _most_pairs(sets: Sets, needs: Needs, options: PlanOptions) -> int:
    """Return how many pairs are scored at most. The near pairs are not known yet."""
    n, existing = sets.pool.height, 0 if sets.existing is None else sets.existing.height
    whole = sets.pool_and_existing.height if needs.existing_records else n
    near = whole * min(whole - 1, 2 * options.neighbours)
    pairs = {"none": 0, "neighbours": near, "all": n * n}[needs.self_pairs]
    if needs.target_pairs and sets.target is not None:
        pairs += sets.target.height * n
    pairs += n * existing if needs.existing_pairs else 0
    return pairs + (existing * existing if needs.replay_pairs else 0)


def _store_versions(home: Home, sets: Sets, needs: Needs, columns: Sequence[pl.Series]) -> None:
    """Store the records as a dataset version, and the existing records as its parent.

    `columns` are columns of the file that quotas count by.
    """
    pool = sets.pool_and_existing if needs.existing_records else sets.pool
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
        # A temporary home holds each version once, so its name can serve as its hash.
        Manifest(kind="dataset", content_hash=version, details=details).write(folder)
    if columns:
        frame = sets.pool.select("record_id").with_columns(columns)
        write_parquet(home.dataset(FILE) / COLUMNS_FILE, frame)


def _write_outputs(
    request: Request,
    sets: Sets,
    selection: Selection,
    reader: LanguageModel,
    unscorable: Mapping[str, str],
) -> None:
    file, source = sets.read["file"], first_input(request.file)
    if selection.replayed is not None:
        # A record that both files hold is looked up in the second one.
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
        reasons = reasons_text(selection, sets.pool, sets.pool_and_existing, reader, unscorable)
        write_output(request.why, reasons.encode("utf-8"))
