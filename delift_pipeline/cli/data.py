"""`delift ingest`, `select`, `score`, `find-wrong` and `prompt`: commands that read records."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from typer import Argument, Option

from delift_pipeline.cli import options as shared
from delift_pipeline.core.errors import InputError, fault_counts
from delift_pipeline.core.home import Home
from delift_pipeline.core.validation import validate

FILES: Any = Argument(
    ...,
    metavar="FILE",
    help="Files in JSON Lines, JSON, CSV, Parquet or Arrow (also .gz, .zst), or folders of such "
    "files. Give `-` for standard input.",
)


def ingest(
    files: list[Path] = FILES,
    version: str = Option(..., help="The new version's name, e.g. mydata-v1."),
    parent: list[str] | None = Option(
        None, help="An earlier version that the new version continues; repeatable."
    ),
    target: Path | None = shared.TARGET,
    heldout: Path | None = Option(
        None,
        help="A file of records that are used for evaluation only [the held-out records of "
        "the parent, else a random tenth of the records].",
    ),
    dataset: str | None = Option(None, help="The name of the dataset that the version belongs to."),
    model: str | None = Option(
        None, envvar="DELIFT_MODEL", help="The model that scores the records of the version."
    ),
    template: str | None = shared.TEMPLATE,
    coverage: str = Option(
        "auto",
        help="Which pairs to score: all, neighbours (each record with the most similar "
        "records), or auto (all pairs if an arm needs them and the pool is small, "
        "else neighbours).",
    ),
    existing: str = Option(
        "subset",
        help="Which records the model already knows in the continual stage: subset (the "
        "picks of the parents) or pool (the pools of the parents).",
    ),
    column: list[str] | None = shared.COLUMN,
    keep: list[str] | None = Option(
        None, help="Also store this column of the file, e.g. for quotas; repeatable."
    ),
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Store the records of files as an immutable dataset version.

    Example: delift ingest data.jsonl --version mydata-v1 --model demo
    """
    from delift_pipeline.records.left_out import FAULTS_FILE, left_out_notes, read_faults
    from delift_pipeline.records.versions import ingest as store
    from delift_pipeline.scoring.model_files import check_local_model
    from delift_pipeline.scoring.options import AUTO, read_options
    from delift_pipeline.stages.announce import announce_reading
    from delift_pipeline.stages.version_model import template_for_ingest

    options = None if model is None else read_options({"model": model}, {"model": "--model"})
    if options is not None:
        check_local_model(options)
    place = shared.writable_home(home)
    model_template = None
    if options is not None and template in (None, AUTO):
        parents = [] if template == AUTO else parent or []
        template, (model_template, notes) = None, template_for_ingest(place, parents, options)
        shared.print_notes(notes)
    announce_reading((files, target, heldout), shared.progress())
    manifest = store(
        place,
        files,
        version=version,
        parents=parent or (),
        target=target,
        heldout=heldout,
        dataset=dataset,
        skip_bad=skip_bad,
        mapping=shared.column_mapping(column),
        coverage=coverage,
        existing=existing,
        model=model,
        template=template,
        model_template=model_template,
        keep=keep or (),
        ids=shared.parse_ids_option(ids),
        say=partial(print, file=sys.stderr),
    )
    counts, faults_file = manifest.counts, place.dataset(version) / FAULTS_FILE
    faults = read_faults(faults_file)
    shared.print_notes(left_out_notes(faults, counts["left_out"], faults_file))
    if counts.get("forgotten"):
        print(f"{counts['forgotten']:,} forgotten records were left out", file=sys.stderr)
    skipped = {"faults": fault_counts(faults), "faults_file": str(faults_file)} if faults else {}
    text = (
        f"{version}: {counts['pool']:,} records in the pool ({counts['new']:,} in no parent, "
        f"{counts['folded']:,} copies folded), {counts['heldout']:,} held out, "
        f"{counts['target']:,} targets\nnext: delift run --version {version} --home {place.root}"
    )
    shared.print_result(as_json, {**manifest.model_dump(mode="json"), **skipped}, text)


@shared.with_model_flags
def select(
    files: list[Path] = FILES,
    model: str = shared.MODEL,
    budget: str = Option(
        ...,
        help="How many records to choose: 0.3 (30 % of the pool), 500 (500 records), "
        "20000tokens (records with at most 20000 tokens in total), full (all "
        "records), or auto (until the gains become small).",
    ),
    out: Path | None = Option(
        None,
        help="The file for the chosen records [./FILE.selected.jsonl]. Give `-` for "
        "standard output.",
    ),
    why: Path | None = Option(
        None, help="Also write the reasons for each record to this file, in JSON Lines."
    ),
    stage: str | None = Option(
        None,
        help="The fine-tuning stage: instruction_tuning, task_specific or continual "
        "[task_specific with --target, continual with --existing, else instruction_tuning].",
    ),
    selector: str = Option(
        "delift_trusted",
        help="The selection method: delift_trusted, delift, delift_se, random, full, "
        "initial, length, selectit, less, deft_ucs, rds_plus, ifd, nuggets, qdit, wici or tsds.",
    ),
    option: list[str] | None = Option(
        None, help="An option of the selector, e.g. embedder=minilm; repeatable."
    ),
    pairs: int | None = Option(
        None,
        min=0,
        help="With how many of its nearest prompts each record is paired [plan.neighbours in "
        "arms.yaml]. 0 scores no pairs: delift_trusted then takes trust from support, with two "
        "passes for each record (trust=support and covers=prompts).",
    ),
    target: Path | None = shared.TARGET,
    existing: Path | None = Option(None, help="A file of records that the model was trained on."),
    balance: list[str] | None = Option(
        None,
        help="Also compare the pool and the subset by this column; repeatable.",
    ),
    quota: list[str] | None = Option(
        None,
        help="How many records each value of a column gets: task:0.1..0.4 gives each task "
        "10 % to 40 % of the budget, and task=math:50.. gives math at least 50 "
        "records; repeatable.",
    ),
    cap: list[str] | None = Option(
        None,
        help="The greatest number of records for each value of a column: source:500 allows "
        "at most 500 records of each source; repeatable.",
    ),
    pin: list[str] | None = Option(
        None,
        help="Records that are always chosen: the id of a record, or a file of records; "
        "repeatable.",
    ),
    exclude: list[str] | None = Option(
        None,
        help="Records that are never chosen: the id of a record, or a file of records; repeatable.",
    ),
    seed: int = Option(0, help="The seed of random choices."),
    column: list[str] | None = shared.COLUMN,
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.SCORES_HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Choose the records of a file that are worth fine-tuning on.

    Dagster is not needed.

    The default selector covers the file by embeddings (tf-idf, unless --option embedder names
    another embedder). The model decides how much each record counts. The command prints how many
    picks the model changed, compared with coverage by embeddings alone.

    Example: delift select data.jsonl --model demo --budget 0.3 --out chosen.jsonl
    """
    import yaml

    from delift_pipeline.records.left_out import faults_path
    from delift_pipeline.selection.rules import RuleOptions
    from delift_pipeline.stages.file_selection import Request
    from delift_pipeline.stages.select_file import select_file

    options = shared.parse_assignments(option, "--option NAME=VALUE")
    texts = {"quota": quota, "cap": cap, "pin": pin, "exclude": exclude}
    rules = {name: values or () for name, values in texts.items()}
    request = Request(
        file=tuple(files),
        target=target,
        existing=existing,
        stage=stage,
        selector=selector,
        options={name: yaml.safe_load(value) for name, value in options.items()},
        pairs=pairs,
        budget=budget,
        seed=seed,
        mapping=shared.column_mapping(column),
        skip_bad=skip_bad,
        out=out or _default_out(files[0]),
        why=why,
        balance=tuple(balance or ()),
        rules=validate(RuleOptions, rules, names={name: f"--{name}" for name in rules}),
        ids=shared.parse_ids_option(ids),
    )
    faults_file = faults_path(request.out, files[0]) if skip_bad else None
    outputs = {"--out": request.out, "--why": why, "--skip-bad": faults_file}
    shared.check_outputs(outputs, read=(*files, target, existing), as_json=as_json)
    with _name_fields_as_options(request.options):
        report = select_file(Home.at(home), request, flags.options(model), shared.progress())
    shared.print_notes((*report.facts["notes"], *report.sentences))
    stream = shared.message_stream(request.out, why)
    shared.print_result(as_json, report.facts, report.text(), stream)


@contextmanager
def _name_fields_as_options(selector_options: Mapping[str, Any]) -> Iterator[None]:
    """Name the fields of faults as the command line does, for example `--pin` or `--option eta`."""
    names = {name: f"--{name}" for name in ("budget", "selector", "pin", "exclude", "quota", "cap")}
    names |= {name: f"--option {name}" for name in selector_options}
    try:
        yield
    except InputError as refused:
        faults = [replace(f, field=names.get(f.field or "", f.field)) for f in refused.faults]
        raise InputError(*faults) from refused


def _default_out(file: Path) -> Path:
    """Return a path in the working directory that is named after the first input."""
    from delift_pipeline.records.tables import STDIN_ARGUMENT, STDIN_PATH

    name = "stdin" if file in (STDIN_ARGUMENT, STDIN_PATH) else file.resolve().name
    return Path(f"{name.split('.')[0]}.selected.jsonl")


@shared.with_model_flags
def score(
    files: list[Path] = FILES,
    model: str = shared.MODEL,
    out: Path = Option(..., help="The Parquet file for the scores, with one row for each pair."),
    column: list[str] | None = shared.COLUMN,
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.SCORES_HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Score every pair of records in a file.

    The scores are written to a Parquet file.

    Example: delift score data.jsonl --model demo --out scores.parquet
    """
    from delift_pipeline.records.left_out import faults_path, write_faults
    from delift_pipeline.stages.score_file import score_file

    faults_file = faults_path(out, files[0])
    outputs = {"--out": out, "--skip-bad": faults_file if skip_bad else None}
    shared.check_outputs(outputs, read=files, as_json=as_json)
    records = shared.read_input(files, column, skip_bad, ids, faults_file)
    options = flags.options(model)
    report = score_file(Home.at(home), records.frame, options, out, shared.progress())
    if records.faults:
        write_faults(faults_file, records.faults)
        skipped = {"left_out": records.left_out, "faults": fault_counts(records.faults)}
        report |= {**skipped, "faults_file": str(faults_file)}
    text = (
        f"{report['pairs_scored']:,} pairs scored, "
        f"{report['pairs_reused']:,} reused from the store, "
        f"{report['unscorable']:,} records unscorable, prompt template {report['template']}, "
        f"{report['seconds']:.1f} s: {out}"
    )
    shared.print_result(as_json, report, text, shared.message_stream(out))


@shared.with_model_flags
def find_wrong(
    files: list[Path] = FILES,
    model: str = shared.MODEL,
    out: Path | None = Option(
        None,
        help="Also write this file: record_id, source_ids, support and trust of each record that "
        "can be scored. The file's suffix decides the format: .jsonl, .csv or .parquet.",
    ),
    show: int = Option(20, min=0, help="How many records to list, the least supported first."),
    column: list[str] | None = shared.COLUMN,
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """List the records that probably have wrong answers.

    Support says how much the prompt of a record tells the model about the record's answer. The
    records with the least support are listed, with the answer tokens that the prompt makes less
    likely and the near prompts that have other answers. The model reads each answer twice: after
    its prompt and after an empty prompt. It scores no pairs. The estimated number of wrong answers
    is calibrated for swapped answers, and with one small model. Errors that stay plausible, such as
    a wrong letter or a wrong number, are not found.

    Example: delift find-wrong data.jsonl --model demo
    """
    from delift_pipeline.stages.find_wrong import find_wrong as rank_by_support

    shared.check_outputs({"--out": out}, read=files, as_json=as_json)
    records = shared.read_input(files, column, skip_bad, ids)
    summary = rank_by_support(
        Home.at(home), records.frame, flags.options(model), shared.progress(), count=show, out=out
    )
    shared.print_result(as_json, summary, _wrong_text(summary), shared.message_stream(out))


def _wrong_text(summary: Mapping[str, Any]) -> str:
    """Return the summary of `find-wrong` for people."""
    lines = []
    for one in summary["least_supported"]:
        own = next(iter(one["source_ids"]), one["record_id"])
        numbers = f"support {one['support']:+.2f}, trust {one['trust']:.2f}"
        lines.append(f"{one['rank']:>4}. {own} ({numbers}): {one['text']}")
        if one["tokens"]:
            changes = "  ".join(f"{t['token']!r} {t['change']:+.2f}" for t in one["tokens"])
            lines.append(f"      less likely after the prompt: {changes}")
        lines += [
            f"      near prompt (cosine {near['similarity']:.2f}): {near['text']}"
            for near in one["near"]
        ]
    if summary["left_out"]:
        first = summary["left_out"][0]["reason"]
        lines.append(f"{len(summary['left_out']):,} records cannot be scored (first: {first})")
    return "\n".join(
        [
            *lines,
            f"about {summary['estimated_wrong']:,} of {summary['scored']:,} answers are wrong "
            f"({summary['estimated_share']:.0%}), if wrong answers are swapped ones",
            f"prompt template: {summary['template']}",
            f"{summary['passes_done']:,} passes made, no pairs, {summary['seconds']:.1f} s",
        ]
    )


@shared.with_model_flags
def prompt(
    files: list[Path] = FILES,
    model: str = shared.MODEL,
    target: str = Option(
        ..., help="The record whose answer is scored: its record_id, or its id in the file."
    ),
    demonstration: list[str] | None = Option(
        None,
        help="A record to show before the target; repeatable. Without this option, only "
        "the target is shown.",
    ),
    column: list[str] | None = shared.COLUMN,
    ids: str = shared.IDS,
    skip_bad: bool = shared.SKIP_BAD,
    flags: shared.ModelFlags = shared.NO_FLAGS,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Show the exact text and the token ids that are scored.

    Name one target. You may also name demonstrations, which come before it.

    Example: delift prompt data.jsonl --model demo --target ID --demonstration ID
    """
    from delift_pipeline.prompts.render import render
    from delift_pipeline.records.stored import find_record
    from delift_pipeline.scoring.model import load_encoder

    records = shared.read_input(files, column, skip_bad, ids).frame
    names = [(target, "--target"), *((name, "--demonstration") for name in demonstration or ())]
    record_ids = [find_record(records, name, field=option, prefix=False) for name, option in names]
    rows = [records.row(by_predicate=pl.col("record_id") == one, named=True) for one in record_ids]
    encoder = load_encoder(flags.options(model))
    rendered = render(encoder, *rows)
    shared.print_notes(encoder.notes)
    tokens, scored = len(rendered.token_ids), len(rendered.answer_positions)
    text = f"{tokens} tokens, the last {scored} are scored: {rendered.token_ids}"
    shared.print_result(as_json, asdict(rendered), f"{rendered.text}\n{text}")
