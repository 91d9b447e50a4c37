"""`delift score` and `delift prompt`: look inside."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from delift_pipeline.cli import options as shared
from delift_pipeline.cli.data import FilesArgument
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.errors import fault_counts
from delift_pipeline.storage.home import Home


@takes_model
def score(
    files: FilesArgument,
    model: shared.ModelOption,
    out: Annotated[Path, typer.Option(help="The Parquet file to write, a row per pair.")],
    column: shared.ColumnOption = None,
    ids: shared.IdsOption = "keep",
    skip_bad: shared.SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    home: shared.HomeOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Score every pair of a file's records: target_id, demonstration_id, sum_logprob, ..."""
    from delift_pipeline.records.left_out import faults_beside, write_faults
    from delift_pipeline.steps.score_file import score_file

    listed = faults_beside(out, files[0])
    outputs = {"--out": out, "--skip-bad": listed if skip_bad else None}
    shared.check_outputs(outputs, read=files, as_json=as_json)
    records = shared.read_input(files, column, skip_bad, ids, listed)
    options = flags.options(model)
    report = score_file(Home.at(home), records.frame, options, out, shared.progress())
    if records.faults:
        write_faults(listed, records.faults)
        counted = {"left_out": records.left_out, "faults": fault_counts(records.faults)}
        report |= {**counted, "faults_file": str(listed)}
    text = (
        f"{report['pairs_scored']:,} pairs scored, {report['pairs_reused']:,} found, "
        f"{report['unscorable']:,} records unscorable, {report['seconds']:.1f} s: {out}"
    )
    shared.print_result(as_json, report, text, shared.message_stream(out))


@takes_model
def prompt(
    files: FilesArgument,
    model: shared.ModelOption,
    target: Annotated[str, typer.Option(help="The record answered: record_id or the file's id.")],
    demonstration: Annotated[
        list[str] | None,
        typer.Option(help="A record shown before it; repeatable; none for the baseline."),
    ] = None,
    column: shared.ColumnOption = None,
    ids: shared.IdsOption = "keep",
    skip_bad: shared.SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    as_json: shared.JsonOption = False,
) -> None:
    """Show the exact text and token ids that are scored for a target and its demonstrations."""
    from delift_pipeline.prompts.render import render
    from delift_pipeline.scoring.model import load_encoder

    records = shared.read_input(files, column, skip_bad, ids).frame
    asked = _record(records, target, "--target")
    shown = [_record(records, name, "--demonstration") for name in demonstration or ()]
    encoder = load_encoder(flags.options(model))
    rendered = render(encoder, asked, *shown)
    shared.print_notes(encoder.notes)
    tokens, scored = len(rendered.token_ids), len(rendered.answer_positions)
    text = f"{tokens} tokens, the last {scored} are scored: {rendered.token_ids}"
    shared.print_result(as_json, asdict(rendered), f"{rendered.text}\n{text}")


def _record(records: pl.DataFrame, name: str, option: str) -> dict[str, Any]:
    """The record of that record_id or source id.

    Raises:
        Refused: there is none.
    """
    from delift_pipeline.records.stored import find_record

    found = find_record(records, name, field=option, prefix=False)
    return records.filter(pl.col("record_id") == found).row(0, named=True)
