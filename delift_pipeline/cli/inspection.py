"""`delift score` and `delift prompt`: look inside."""

import sys
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from delift_pipeline.cli.data import FileArgument
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import (
    ColumnOption,
    HomeOption,
    JsonOption,
    ModelOption,
    SkipBadOption,
    check_outputs,
    column_mapping,
    message_stream,
    print_json,
    progress,
)
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.storage.home import Home


@takes_model
def score(
    file: FileArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="The Parquet file to write, a row per pair.")],
    column: ColumnOption = None,
    skip_bad: SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every pair of a file's records: target_id, demonstration_id, sum_logprob, ..."""
    from delift_pipeline.records.read import read_records
    from delift_pipeline.steps.score_file import score_file

    check_outputs({"--out": out}, read=[file], as_json=as_json)
    records = read_records(file, mapping=column_mapping(column), skip_bad=skip_bad)
    options = flags.options(model)
    report = score_file(Home.at(home), records.frame, options, out, progress())
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
    file: FileArgument,
    model: ModelOption,
    target: Annotated[str, typer.Option(help="The record answered: record_id or the file's id.")],
    demonstration: Annotated[
        list[str] | None,
        typer.Option(help="A record shown before it; repeatable; none for the baseline."),
    ] = None,
    column: ColumnOption = None,
    skip_bad: SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    as_json: JsonOption = False,
) -> None:
    """Show the exact text and token ids that are scored for a target and its demonstrations."""
    from delift_pipeline.prompts.render import render
    from delift_pipeline.records.read import read_records
    from delift_pipeline.scoring.model import load_encoder

    records = read_records(file, mapping=column_mapping(column), skip_bad=skip_bad).frame
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
