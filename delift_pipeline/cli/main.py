"""The `delift` program: exit status 0 done, 1 the work failed, 2 the input was refused."""

import logging
import os
import sys

import typer

from delift_pipeline.cli import (
    bench,
    bench_scoring,
    bench_selection,
    compare,
    data,
    demo,
    explain,
    inspection,
    judge,
    lineage,
    operations,
    plan,
    query,
    recipe,
    runs,
    verify,
)
from delift_pipeline.errors import DeliftError, Refused

app = typer.Typer(
    help="Choose the part of an instruction data set worth fine-tuning on, and say why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("ingest")(data.ingest)
app.command("recipe")(recipe.recipe)
app.command("select")(data.select)
app.command("score")(inspection.score)
app.command("prompt")(inspection.prompt)
app.command("explain")(explain.explain)
app.command("run")(runs.run)
app.command("ui")(runs.ui)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("lineage")(lineage.lineage)
app.command("judge")(judge.judge)
app.command("query")(query.query)
app.command("catalog")(query.catalog)
app.command("forget")(operations.forget)
app.command("doctor")(operations.doctor)
app.command("gc")(operations.gc)
app.command("verify")(verify.verify)
bench.app.command("scoring")(bench_scoring.scoring)
bench.app.command("selection")(bench_selection.selection)
app.add_typer(bench.app, name="bench")


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with its status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It warns of an optional package for faster 4-bit weights even where none are used.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the program; the exit status instead of exceptions."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except Refused as refused:
        for fault in refused.faults:
            print(fault, file=sys.stderr)
        return 2
    except DeliftError as error:
        print(error, file=sys.stderr)
        return 1
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        # A wrong command line; Typer's own exceptions, as it no longer builds on click's.
        print(getattr(error, "format_message", error.__str__)(), file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
