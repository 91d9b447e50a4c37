"""The `delift` program. Exit status 0: done; 1: the work failed; 2: the input was refused."""

import io
import logging
import os
import sys
import traceback

import typer
from typer import Option

from delift_pipeline import __version__
from delift_pipeline.cli import bench, compare, data, lineage, operations, recipe, runs
from delift_pipeline.cli.options import DEBUG_VARIABLE, environment, is_debugging
from delift_pipeline.core import errors
from delift_pipeline.core.signals import exit_with

DEBUG = "--debug"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(is_set: bool) -> None:
    if is_set:
        print(f"delift {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
    debug: bool = Option(
        False,
        DEBUG,
        help="Show the traceback of an error. --debug may stand anywhere in a command.",
    ),
) -> None:
    """Choose the records of an instruction dataset that are worth fine-tuning on, and show why."""


for command in (
    *(runs.demo, data.ingest, recipe.recipe, data.select, data.score, data.find_wrong, data.prompt),
    *(lineage.explain, runs.run, runs.ui, operations.plan, compare.compare, lineage.lineage),
    *(compare.judge, operations.query, operations.catalog, operations.forget),
    *(operations.doctor, operations.gc, operations.verify),
):
    app.command()(command)
app.add_typer(bench.app, name="bench")


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with its status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Processes that this one starts must not import from the current folder: a file of the user may
    # have the name of a module there.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    # bitsandbytes warns about an optional package even if no 4-bit weights are used.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Print characters that the terminal lacks as escapes.
            stream.reconfigure(errors="backslashreplace")
    exit_with(lambda: run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the program, and return its exit status instead of raising exceptions."""
    words = sys.argv[1:] if arguments is None else arguments
    # The user may write `--debug` anywhere before `--`.
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != DEBUG] + words[end:]
    with environment({DEBUG_VARIABLE: "1"} if len(rest) < len(words) else {}):
        try:
            status = app(args=rest, standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of our output, such as `head`, has ended. Python would report that at exit.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 1
        except (KeyboardInterrupt, typer.Abort):
            return 130
        except Exception as error:
            if is_debugging():
                traceback.print_exc()
            status, lines = _exit_status_and_lines(error)
            for line in lines:
                print(line, file=sys.stderr)
    return status if isinstance(status, int) else 0


def _exit_status_and_lines(error: Exception) -> tuple[int, list[str]]:
    """Return the exit status for an error, and the lines to print."""
    if isinstance(error, errors.InputError):
        return 2, errors.fault_lines(error.faults)
    if isinstance(error, errors.DeliftError):
        return 1, [str(error)]
    if isinstance(error, typer.TyperException):
        # The command line is wrong. Typer has exceptions of its own, which are not click's.
        return 2, [getattr(error, "format_message", error.__str__)()]
    if (refused := errors.system_error(error)) is not None:
        return 1, [errors.system_sentence(refused)]
    return 1, [errors.unexpected_sentence(error)]


if __name__ == "__main__":
    main()
