"""`delift compare` and `delift judge`: compare arms by metrics, or by the scores of a judge.

Both show paired differences with their standard errors. `compare --experiment` shows the selectors
of an experiment's table instead.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Option

from delift_pipeline.cli import options as shared
from delift_pipeline.cli.bench import DEFAULT_FOLDER, show_table
from delift_pipeline.cli.lineage import split_adapter
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.formatting import with_error
from delift_pipeline.core.home import BASE_MODEL, Home
from delift_pipeline.core.output import refuse_unwritable_folder

if TYPE_CHECKING:
    from rich.table import Table

    from delift_pipeline.evaluation.judge.run import Estimate
    from delift_pipeline.operations.compare import Comparison, Side
    from delift_pipeline.stages.judge import JudgedAnswers


def compare(
    arms: list[str] | None = Argument(
        None,
        metavar="V/ARM",
        help="The arms to compare. The output shows how much each arm differs from the first "
        "arm. With --experiment: the selectors to show [all].",
    ),
    experiment: str | None = Option(
        None,
        help="Compare selectors instead of arms: show the results of `delift bench "
        "quality` for this experiment.",
    ),
    out: Path = Option(
        Path(DEFAULT_FOLDER),
        help="With --experiment: the folder that holds the results of `delift bench quality`.",
    ),
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Compare evaluated arms on the same held-out records.

    With --experiment: compare the selectors of an experiment.

    Example: delift compare V/instruction_tuning.random V/instruction_tuning.delift_trusted
    """
    if experiment is not None:
        from delift_pipeline.bench.quality import stored_table

        stored = stored_table(out, experiment, arms or [])
        show_table(stored, out / f"{experiment}.html", as_json)
        return
    if not arms:
        raise InputError(
            "name arms as V/ARM, or an experiment with --experiment NAME", field="arms"
        )
    from delift_pipeline.operations.compare import compare_arms

    comparison = compare_arms(Home.at(home), [split_adapter(name) for name in arms])
    if as_json:
        shared.print_json(asdict(comparison))
        return
    _print_comparison(comparison)
    shared.print_notes(comparison.notes)


def _arms_table(figures: list[str]) -> "Table":
    """Return an empty table with a column for the arm and one for each figure."""
    table = shared.plain_table()
    for heading in ("arm", *figures):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    return table


def _print_comparison(comparison: "Comparison") -> None:
    from rich.console import Console

    from delift_pipeline.evaluation.options import METRICS

    measured = {name for side in comparison.arms for name in side.metrics}
    metrics = {name: metric for name, metric in METRICS.items() if name in measured}
    columns = ["records", "shared", "held out"]
    columns += [name for one in metrics.values() for name in (one.heading, "- first")]
    table = _arms_table(columns)
    for side in comparison.arms:
        cells = [cell for name in metrics for cell in _cells(side, name)]
        counts = (side.records, side.shared, side.heldout)
        table.add_row(side.name, *("" if c is None else f"{c:,}" for c in counts), *cells)
    width = None if sys.stdout.isatty() else 400
    Console(width=width).print(table, markup=False)
    for better in ("lower", "higher"):
        headings = [metric.heading for metric in metrics.values() if metric.better == better]
        if headings:
            print(f"{better} is better: {', '.join(headings)}")


def _cells(side: "Side", metric: str) -> tuple[str, str]:
    value, error = side.metrics.get(metric), side.metrics.get(f"{metric}_se")
    gap = side.minus_first.get(metric)
    mean = "" if value is None else with_error(value, error or 0.0, ascii_only=True)
    if gap is None:
        return mean, ""
    return mean, with_error(gap["mean"], gap["se"], sign=True, ascii_only=True)


@shared.with_model_flags
def judge(
    arms: list[str] = Argument(
        ...,
        metavar="V/ARM",
        help="The arms to judge. V/initial is the untrained model of the version V. "
        "The output shows how much each arm differs from the first arm.",
    ),
    model: str = Option(
        ...,
        "--judge",
        help="The judge: the name of a model at --endpoint, or a model to run on this machine.",
    ),
    endpoint: str | None = Option(
        None,
        help="The address of an OpenAI-compatible server. Without an address, the judge "
        "runs on this machine.",
    ),
    mode: str = Option(
        "single",
        help="How many scores an answer gets: single (one score for eight qualities "
        "together) or dimensions (one score for each of the eight).",
    ),
    scoring: str = Option(
        "written",
        help="How a score is computed: written (the judge writes the score) or expected "
        "(the mean of 1 to 5, weighted by the probabilities of the digits).",
    ),
    max_tokens: int = Option(
        512, help="With --scoring written: the greatest number of tokens in a reply."
    ),
    least_mass: float = Option(
        0.5,
        help="With --scoring expected: a reply counts only if the digits 1 to 5 together have "
        "at least this probability.",
    ),
    parallel: int = Option(4, help="How many requests run at the same time."),
    retries: int = Option(5, help="How often a failed request is tried again."),
    timeout: float = Option(120.0, help="How many seconds a request may take."),
    price_in: float | None = Option(
        None, help="Your price for a million prompt tokens, for --estimate."
    ),
    price_out: float | None = Option(
        None, help="Your price for a million reply tokens, for --estimate."
    ),
    estimate: bool = Option(
        False, "--estimate", help="Print the estimated cost, and send no request."
    ),
    flags: shared.ModelFlags = shared.NO_FLAGS,
    home: Path | None = shared.HOME,
    as_json: bool = shared.AS_JSON,
) -> None:
    """Let a language model judge the stored answers of arms.

    Each answer gets a score from 1 to 5. Scores are stored, so no answer is sent twice. The key of
    the endpoint is read from the environment variable DELIFT_JUDGE_API_KEY.

    Example: delift judge V/instruction_tuning.random V/initial --judge demo --estimate
    """
    arguments = locals()  # The options have the names of the fields of JudgeOptions.
    from delift_pipeline.core.validation import validate
    from delift_pipeline.evaluation.judge.questions import JudgeOptions
    from delift_pipeline.stages.judge import (
        AnswerSet,
        JudgeSetup,
        estimate_judging,
        judge_answer_sets,
    )

    fields = JudgeOptions.model_fields.keys() & arguments.keys()
    options = validate(JudgeOptions, {name: arguments[name] for name in fields})
    if endpoint and flags.values():
        names = ", ".join(f"--{name.replace('_', '-')}" for name in flags.values())
        raise InputError(
            f"{names} is for a judge that runs here. Leave it out, or leave out --endpoint",
            field="--endpoint",
        )
    local = None if endpoint else flags.options(model)
    setup = JudgeSetup(Home.at(home), options, local)
    form = f"write VERSION/ARM or VERSION/{BASE_MODEL}"
    faults = [Fault(f"{name!r}: {form}", field="arm") for name in arms]
    answers = [AnswerSet(*split_adapter(*one)) for one in zip(arms, faults, strict=True)]
    cost = estimate_judging(setup, answers)
    progress = shared.progress()
    if estimate:
        shared.print_json(vars(cost)) if as_json else print(_cost_line(cost))
        return
    progress.say(_cost_line(cost))
    refuse_unwritable_folder(setup.home.root, "--home")
    judged = judge_answer_sets(setup, answers, progress)
    shared.print_json([one.as_json() for one in judged]) if as_json else _print_scores(judged)


def _cost_line(cost: "Estimate") -> str:
    price = "" if cost.price is None else f", price about {cost.price:,.2f}"
    return (
        f"{cost.requests:,} requests ({cost.known:,} of {cost.questions:,} replies are stored), "
        f"about {cost.prompt_tokens:,} prompt tokens and {cost.reply_tokens:,} reply tokens{price}"
    )


def _print_scores(judged: "list[JudgedAnswers]") -> None:
    from rich.console import Console

    table = _arms_table(["score", "scored", "no score", "no reply", "minus first"])
    for one in judged:
        scores, gap = one.judged.overall, one.minus_first
        mean = with_error(scores.mean, scores.se, 2, ascii_only=True)
        difference = with_error(gap.mean, gap.se, 2, sign=True, ascii_only=True) if gap else "-"
        counts = (scores.scored, scores.unparsable, scores.failed)
        table.add_row(str(one.answers), mean, *(f"{count:,}" for count in counts), difference)
    Console().print(table)
