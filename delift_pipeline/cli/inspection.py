"""`delift score` and `delift prompt`: look inside."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer

from delift_pipeline.cli.data import FilesArgument
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import (
    ColumnOption,
    HomeOption,
    IdsOption,
    JsonOption,
    ModelOption,
    SkipBadOption,
    check_outputs,
    column_mapping,
    ids_choice,
    message_stream,
    print_json,
    print_notes,
    progress,
)
from delift_pipeline.errors import Fault, Refused, fault_counts
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.records.read import RecordsFile


@takes_model
def score(
    files: FilesArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="The Parquet file to write, a row per pair.")],
    column: ColumnOption = None,
    ids: IdsOption = "keep",
    skip_bad: SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every pair of a file's records: target_id, demonstration_id, sum_logprob, ..."""
    from delift_pipeline.records.left_out import faults_beside, write_faults
    from delift_pipeline.steps.score_file import score_file

    listed = faults_beside(out, files[0])
    outputs = {"--out": out, "--skip-bad": listed if skip_bad else None}
    check_outputs(outputs, read=files, as_json=as_json)
    records = _read(files, column, skip_bad, ids, listed)
    options = flags.options(model)
    report = score_file(Home.at(home), records.frame, options, out, progress())
    if records.faults:
        write_faults(listed, records.faults)
        counted = {"left_out": records.left_out, "faults": fault_counts(records.faults)}
        report |= {**counted, "faults_file": str(listed)}
    if as_json:
        print_json(report)
        return
    print(
        f"{report['pairs_scored']:,} pairs scored, {report['pairs_reused']:,} found, "
        f"{report['unscorable']:,} records unscorable, {report['seconds']:.1f} s: {out}",
        file=message_stream(out),
    )


@takes_model
def prompt(
    files: FilesArgument,
    model: ModelOption,
    target: Annotated[str, typer.Option(help="The record answered: record_id or the file's id.")],
    demonstration: Annotated[
        list[str] | None,
        typer.Option(help="A record shown before it; repeatable; none for the baseline."),
    ] = None,
    column: ColumnOption = None,
    ids: IdsOption = "keep",
    skip_bad: SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    as_json: JsonOption = False,
) -> None:
    """Show the exact text and token ids that are scored for a target and its demonstrations."""
    from delift_pipeline.prompts.render import render
    from delift_pipeline.scoring.model import load_encoder

    records = _read(files, column, skip_bad, ids, None).frame
    asked = _record(records, target, "--target")
    shown = [_record(records, name, "--demonstration") for name in demonstration or ()]
    encoder = load_encoder(flags.options(model))
    rendered = render(encoder, asked, *shown)
    for note in encoder.notes:
        print(note, file=sys.stderr)
    if as_json:
        print_json(
            {
                "text": rendered.text,
                "token_ids": rendered.token_ids,
                "answer_positions": rendered.answer_positions,
            }
        )
        return
    print(rendered.text)
    scored = len(rendered.answer_positions)
    print(f"{len(rendered.token_ids)} tokens, the last {scored} are scored: {rendered.token_ids}")


def _read(
    files: list[Path], column: list[str] | None, skip_bad: bool, ids: str, listed: Path | None
) -> "RecordsFile":
    """The files' records; what there is to know of their reading goes to standard error."""
    from delift_pipeline.records.left_out import left_out_notes
    from delift_pipeline.records.read import read_records
    from delift_pipeline.steps.reading import announce_reading

    announce_reading([files], progress())
    mapping, chosen = column_mapping(column), ids_choice(ids)
    records = read_records(files, mapping=mapping, skip_bad=skip_bad, ids=chosen)
    print_notes([*left_out_notes(records.faults, records.left_out, listed), *records.notes])
    return records


def _record(records: pl.DataFrame, name: str, option: str) -> dict[str, Any]:
    """The record of that record_id or source id.

    Raises:
        Refused: there is none.
    """
    named = (pl.col("record_id") == name) | pl.col("source_ids").list.contains(name)
    found = records.filter(named)
    if found.is_empty():
        raise Refused(Fault(f"no record has the id {name!r}", field=option))
    return found.row(0, named=True)
