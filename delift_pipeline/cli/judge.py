"""`delift judge`: a language model's opinion of the answers arms gave."""

from typing import TYPE_CHECKING, Annotated

import typer

from delift_pipeline.cli.model_flags import NO_FLAGS, ModelFlags, takes_model
from delift_pipeline.cli.options import HomeOption, JsonOption, print_json, progress
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.formatting import with_error
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.output import refuse_unwritable_folder

if TYPE_CHECKING:
    from delift_pipeline.evaluation.judge.run import Estimate
    from delift_pipeline.steps.judge import JudgedSide


@takes_model
def judge(
    arms: Annotated[
        list[str],
        typer.Argument(help="VERSION/ARM or VERSION/initial; differences are to the first."),
    ],
    model: Annotated[
        str, typer.Option("--judge", help="The judge's name at the endpoint, or a local model.")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible address; without one the judge runs here."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="single: one score; dimensions: each of the eight by itself.")
    ] = "single",
    scoring: Annotated[
        str, typer.Option(help="written, or expected from the digits' log-probabilities.")
    ] = "written",
    max_tokens: Annotated[int, typer.Option(help="Longest written judgement.")] = 512,
    least_mass: Annotated[
        float, typer.Option(help="expected: least probability of the digits together.")
    ] = 0.5,
    parallel: Annotated[int, typer.Option(help="Requests at a time.")] = 4,
    retries: Annotated[int, typer.Option(help="Further tries of a request that failed.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 120.0,
    price_in: Annotated[
        float | None, typer.Option(help="Price of a million prompt tokens, for the estimate.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million tokens written.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it would cost, ask nothing.")
    ] = False,
    flags: ModelFlags = NO_FLAGS,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a language model score stored answers from 1 to 5; every reply is asked for once.

    The endpoint's key is read from the environment variable DELIFT_JUDGE_API_KEY.
    """
    from delift_pipeline.evaluation.judge.questions import read_judge_options
    from delift_pipeline.steps.judge import Panel, estimate_judging, judge_sides, side_of

    asked = {
        "model": model,
        "endpoint": endpoint,
        "mode": mode,
        "scoring": scoring,
        "max_tokens": max_tokens,
        "least_mass": least_mass,
        "parallel": parallel,
        "retries": retries,
        "timeout": timeout,
        "price_in": price_in,
        "price_out": price_out,
    }
    options = read_judge_options(asked)
    if endpoint and flags.given():
        given = ", ".join(f"--{name.replace('_', '-')}" for name in flags.given())
        raise Refused(Fault(f"{given} is for a judge that runs here", field="--endpoint"))
    local = None if endpoint else flags.options(model)
    panel, sides = Panel(Home.at(home), options, local), [side_of(arm) for arm in arms]
    cost = estimate_judging(panel, sides)
    shown = progress()
    if estimate:
        print_json(vars(cost)) if as_json else print(_cost_line(cost))
        return
    shown.say(_cost_line(cost))
    refuse_unwritable_folder(panel.home.root, "--home")
    found = judge_sides(panel, sides, shown)
    print_json([one.as_json() for one in found]) if as_json else _print(found)


def _cost_line(cost: "Estimate") -> str:
    price = "" if cost.price is None else f", price about {cost.price:,.2f}"
    return (
        f"{cost.requests:,} questions to ask ({cost.known:,} of {cost.questions:,} known), about "
        f"{cost.prompt_tokens:,} tokens asked and {cost.reply_tokens:,} replied{price}"
    )


def _print(found: "list[JudgedSide]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for heading in ("score", "scored", "no score", "no reply", "minus first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        scores, gap = one.judged.overall, one.minus_first
        mean = with_error(scores.mean, scores.se, 2, ascii_only=True)
        beside = with_error(gap.mean, gap.se, 2, sign=True, ascii_only=True) if gap else "-"
        counts = (scores.scored, scores.unparsable, scores.failed)
        table.add_row(str(one.side), mean, *(f"{count:,}" for count in counts), beside)
    Console().print(table)
