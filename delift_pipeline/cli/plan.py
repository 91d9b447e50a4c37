"""`delift plan`: what a version or file would cost, before anything is done."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli import options as shared
from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.operations.cost import Cost
    from delift_pipeline.scoring.options import ModelOptions


@takes_model
def plan(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Files of records, in place of a stored version."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="A stored version, or a file.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="An arm; repeatable [all that apply; of a file select's default]."),
    ] = None,
    model: shared.OwnModelOption = None,
    measure: Annotated[
        bool, typer.Option(help="Where no scores are stored, try the model on a few records.")
    ] = True,
    column: shared.ColumnOption = None,
    ids: shared.IdsOption = "keep",
    skip_bad: shared.SkipBadOption = False,
    flags: ModelFlags = NO_FLAGS,
    home: shared.HomeOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Say how many pairs, how long, how much disk and how much training the arms would take."""
    from delift_pipeline.operations.cost import cost_of, cost_of_records

    place, names = Home.at(home), arm or []
    if bool(files) == (version is not None):
        raise Refused(Fault("name either a file of records or a stored version (--version V)"))
    if version is not None and version not in place.versions() and Path(version).is_file():
        files = [Path(version)]
    if files:
        options = flags.options(model) if model else None
        read = shared.read_input(files, column, skip_bad, ids)
        named = ", ".join(map(str, files))
        found = cost_of_records(named, read.frame, place, names, options, measure=measure)
    elif version is not None:
        options = _own_model(place, version, model, flags)
        found = cost_of(place, version, names, options, measure=measure)
    shared.print_result(as_json, found.as_json(), _text(found))


def _own_model(
    home: Home, version: str, model: str | None, flags: ModelFlags
) -> "ModelOptions | None":
    """The model given, else the version's own with its template."""
    from dataclasses import replace

    from delift_pipeline.records.stored import known_manifest
    from delift_pipeline.storage.home import model_at

    own = known_manifest(home, version).details
    kept = model_at(home, own["model"]) if own.get("model") and not model else None
    named = model or kept or os.environ.get("DELIFT_MODEL")
    if not named:
        return None
    return replace(flags, template=flags.template or own.get("template")).options(named)


def _text(cost: "Cost") -> str:
    from delift_pipeline.scoring.rate import duration_text

    lines = [f"{cost.name}: {cost.records:,} records"]
    for block in cost.blocks:
        most = "" if block.exact else "at most "
        kind = "every pair" if block.dense else "near pairs"
        lines.append(
            f"  pairs     {block.block}: {most}{block.pairs:,} ({kind}), {block.missing:,} to score"
        )
    time = "not known" if cost.seconds is None else f"about {duration_text(cost.seconds)}"
    rate = f" ({cost.rate:,.0f} pairs a second by {cost.rate_from})" if cost.rate else ""
    lines += [
        f"  scoring   {time}{rate}" if cost.pairs else "  scoring   nothing is missing",
        f"  disk      {cost.disk_bytes / 1e6:,.1f} MB more for scores and kernel",
    ]
    for arm in cost.arms:
        took = "time not known" if arm.seconds is None else f"about {duration_text(arm.seconds)}"
        lines.append(f"  training  {arm.arm}: {arm.records:,} records, {arm.steps:,} steps, {took}")
    if cost.hours is not None:
        lines.append(f"  in all    {cost.hours:,.2f} {'GPU hours' if cost.gpu else 'hours here'}")
    return "\n".join([*lines, *(f"  note      {note}" for note in cost.notes)])
