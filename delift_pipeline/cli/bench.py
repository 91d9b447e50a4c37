"""`delift bench`: measure speed, and the quality of selectors."""

import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from typer import Option

from delift_pipeline.cli.options import (
    AS_JSON,
    NO_FLAGS,
    TARGET,
    ModelFlags,
    check_outputs,
    print_json,
    progress,
    with_model_flags,
)
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.output import refuse_unwritable_folder

COLUMNS = (
    *("n", "storage", "objective", "optimizer", "seconds", "times_a_read", "peak_rss_mib"),
    *("beyond_kernel_mib", "ratio_vs_submodlib", "ratio_vs_apricot", "same_ranking"),
)
"""The columns of the table of `delift bench selection`."""
DEFAULT_FOLDER = "delift_bench"

app = typer.Typer(help="Measure speed, and compare the quality of selectors.", no_args_is_help=True)


@app.command("quality")
@with_model_flags
def bench_quality(
    data: Path | None = Option(
        None,
        help="A file of your records, or `demo` (the demo world): draw pools from it, and compare "
        "selectors on them. The options from --heldout to --trust-remote-code work only with "
        "--data.",
    ),
    experiment: str = Option(
        "selectors",
        help="The experiment: selectors, stages, budget, annotation_budget, tuning, "
        "objectives, kernel, cost, transfer or theory.",
    ),
    quick: bool = Option(
        False,
        "--quick",
        help="Measure only 2 pools and one budget, with 15 % wrong answers in each pool.",
    ),
    only: list[str] | None = Option(
        None,
        help="The stages or selectors to measure, separated by commas; repeatable [all]. "
        "The selector random is always included.",
    ),
    seeds: str | None = Option(
        None, help="The seeds of the pools, e.g. 500-509 or 500,503 [the seeds of the experiment]."
    ),
    model: str | None = Option(
        None,
        help="With --data: the model that scores and is trained. With --experiment tuning: the "
        "model to train [demo].",
    ),
    judge: str | None = Option(
        None,
        help="With --experiment stages: the judge, which is the name of a model at "
        "--endpoint, or a local model.",
    ),
    endpoint: str | None = Option(
        None, help="The address of an OpenAI-compatible server that runs the judge."
    ),
    judge_mode: str = Option(
        "single",
        help="How many scores an answer gets: single or dimensions, as in `delift judge --mode`.",
    ),
    judge_scoring: str = Option(
        "written",
        help="How a score is computed: written or expected, as in `delift judge --scoring`.",
    ),
    workers: int = Option(2, min=1, help="How many processes run. Each process uses one thread."),
    out: Path = Option(
        Path(DEFAULT_FOLDER),
        help="The folder for the results. Results that are already in this folder are used again.",
    ),
    track: bool = Option(
        True,
        "--track/--no-track",
        help="Log the table of results to MLflow, in the folder OUT/home.",
    ),
    markdown: Path | None = Option(
        None, help="Also write the tables of exact match to this file, as Markdown."
    ),
    heldout: Path | None = Option(
        None, help="A file of records to evaluate on [a fifth of the records, at most 200]."
    ),
    heldout_size: int = Option(200, min=1, help="The greatest number of held-out records."),
    target: Path | None = TARGET,
    selectors: list[str] | None = Option(
        None,
        help="The selectors to compare, separated by commas; with options as in "
        "delift_se:embedder=minilm [initial, random, full, delift_se, delift_trusted]. "
        "The selector random is always included.",
    ),
    budgets: str = Option("0.1,0.3", help="The budgets: shares of a pool."),
    wrong: str = Option(
        "0", help="The shares of records that get the answer of another record of their task."
    ),
    pools: int = Option(
        5, min=1, help="How many pools are drawn. With --seeds, one pool is drawn for each seed."
    ),
    pool_size: int | None = Option(
        None, min=2, help="How many records a pool has [400, or all if there are fewer]."
    ),
    skew: float | None = Option(
        None,
        min=0,
        help="Draw the k-th task of a pool with a share in proportion to k to the power of minus "
        "SKEW, e.g. 0.7; the seed draws the order of the tasks [each task keeps its share].",
    ),
    steps: int | None = Option(
        None, min=1, help="Train every run for this many steps [5 passes over a subset]."
    ),
    epochs: float | None = Option(
        None, min=0.01, help="Train every run for this many passes over its own records instead."
    ),
    learning_rate: float | None = Option(
        None, min=0, help="The highest learning rate of LoRA [0.001]."
    ),
    train: bool = Option(
        True,
        "--train/--no-train",
        help="Without training: compare wrong answers, tasks and costs of the picks only.",
    ),
    generate: bool = Option(
        False, "--generate", help="Also generate answers: exact match and ROUGE-L. This is slow."
    ),
    flags: ModelFlags = NO_FLAGS,
    as_json: bool = AS_JSON,
) -> None:
    """Compare the quality of selectors.

    A model is trained on the picks of each selector. Then the answers are compared. With --data the
    pools are drawn from your own records, and the last line is an advice for your data. Otherwise
    an experiment on synthetic pools is run, in a source checkout.

    Example: delift bench quality --data data.jsonl --model M --budgets 0.3 --out bench
    """
    if data is not None:
        from delift_pipeline.bench import own_data
        from delift_pipeline.bench.sources import read_source

        is_demo = str(data) == own_data.MODEL_DEMO
        if model is None and not is_demo:
            raise InputError("--data needs a model that scores and is trained", field="--model")
        if steps is not None and epochs is not None:
            raise InputError("use either --steps or --epochs", field="--epochs")
        model_options = flags.options(model or own_data.MODEL_DEMO)
        if model_options.model == own_data.MODEL_DEMO and flags.template is None:
            model_options = model_options.model_copy(update={"template": "world"})
        refuse_unwritable_folder(out, "--out")
        source = read_source(
            None if is_demo else data,
            heldout,
            target,
            skew=skew,
            pool_size=pool_size,
            heldout_size=heldout_size,
        )
        listed = [one.strip() for names in selectors or () for one in names.split(",")]
        table = own_data.compare_on_data(
            out,
            source,
            model_options,
            progress(),
            selectors=listed or own_data.SELECTORS,
            budgets=_parse_shares(budgets, "--budgets"),
            wrong_shares=_parse_shares(wrong, "--wrong"),
            seeds=_parse_seeds(seeds) or range(pools),
            training=own_data.Training(steps, epochs, learning_rate) if train else None,
            generate=generate,
        )
        show_table(table, None, as_json)
        return
    from delift_pipeline.bench.quality import load_experiments

    planned = load_experiments().plan(
        experiment,
        only=[name.strip() for names in only or [] for name in names.split(",")],
        seeds=_parse_seeds(seeds),
        quick=quick,
        model=model or "demo",
        judge=judge,
        endpoint=endpoint,
        mode=judge_mode,
        scoring=judge_scoring,
    )
    check_outputs({"--markdown": markdown}, as_json=as_json)
    refuse_unwritable_folder(out, "--out")
    table, page = planned.run(out, progress(), workers, markdown=markdown, track=track)
    show_table(table, page, as_json)


def _parse_shares(text: str, field: str) -> tuple[float, ...]:
    """Read `0.1,0.3` as numbers.

    Raises:
        InputError: a part is not a number.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a list of shares. Write for example 0.1,0.3", field=field
        ) from error


def _parse_seeds(text: str | None) -> tuple[int, ...]:
    """Read `500-502,510` as (500, 501, 502, 510).

    Raises:
        typer.BadParameter: the text has another form, or holds no pool.
    """
    if text is None:
        return ()
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise typer.BadParameter(f"write --seeds 500-509 or 500,503, not {text}") from error
    if not seeds:
        raise typer.BadParameter(f"--seeds {text} holds no pool: write the lower number first")
    return tuple(dict.fromkeys(seeds))


def show_table(table: dict[str, Any], page: Path | None, as_json: bool) -> None:
    """Print a table as JSON, or one table for each stage, mode, budget and metric.

    `page` is the page of an experiment; a comparison on the user's data has an advice instead.
    """
    if as_json:
        print_json(table if page is None else {**table, "page": str(page)})
        return
    from rich.console import Console
    from rich.table import Table

    from delift_pipeline.bench.table import difference_text
    from delift_pipeline.core.formatting import with_error

    console = Console(width=130)
    keys = ("stage", "wrong_share", "mode", "budget", "metric")
    for key, group in groupby(table["rows"], key=lambda row: tuple(row[name] for name in keys)):
        stage, wrong, mode, budget, metric = key
        title = f"{stage}: {metric}, {mode}, {wrong:.0%} wrong answers, budget {budget:.0%}"
        printed = Table("selector", title=title, title_justify="left")
        others = {"random": "- random", "tfidf": "- tf-idf", "delift": "- delift"}
        compared = list(others) if page is not None else ["random"]
        for column in ("mean", *(others[one] for one in compared), "wrong", "pairs"):
            printed.add_column(column, justify="right")
        for row in group:
            printed.add_row(
                row["selector"] + (" *" if row["within_error_of_best"] else ""),
                with_error(row["mean"], row["se"], ascii_only=True),
                *(difference_text(row, other, " not resolved") for other in compared),
                f"{row['wrong_in_subset']:.0%}",
                f"{row['pairs_per_record']:.1f}",
            )
        console.print(printed)
    console.print("means over pools ± one standard error; differences paired by pool; * within one")
    console.print("standard error of the best; wrong: share of wrong answers in the subset; pairs:")
    console.print("scored pairs a record of the pool.")
    for line in table["notes"]:
        print(line)
    if page is not None:
        print(page)
        return
    print(f"{table['pairs_scored']:,} pairs scored, {table['seconds']:,.0f} s")
    print(table["advice"])


@app.command("scoring")
def bench_scoring(
    shape: str = Option(
        "llama-10m",
        help="A model with random weights of this shape: llama-10m, llama-3.2-1b, llama-3.2-3b, "
        "qwen2.5-0.5b, demo or wide-vocabulary.",
    ),
    device: str = Option("cpu", help="The device: cpu or cuda."),
    repeats: int = Option(
        5, min=1, help="How often each case is measured. The results are medians."
    ),
    targets: int = Option(16, min=1, help="How many targets follow each demonstration."),
    demonstrations: int = Option(2, min=1, help="How many demonstrations each measurement has."),
    length: list[str] | None = Option(
        None,
        help="The length of the records: short, realistic or tiny; repeatable [short and "
        "realistic].",
    ),
    naive_batch: int = Option(16, min=1, help="How many pairs a padded batch has."),
    threads: int = Option(1, min=1, help="How many CPU threads to use."),
    as_json: bool = AS_JSON,
) -> None:
    """Measure how many pairs are scored per second.

    Our engine is compared with padded batches and with vLLM.

    Example: delift bench scoring --length realistic --repeats 3
    """
    import torch

    from delift_pipeline.bench import scoring as bench

    choices = {"--shape": ([shape], bench.SHAPES), "--length": (length or [], bench.LENGTHS)}
    faults = [
        Fault(f"{name!r} is not a {field[2:]}. Use one of: {', '.join(known)}", field=field)
        for field, (names, known) in choices.items()
        for name in names
        if name not in known
    ]
    if faults:
        raise InputError(*faults)
    if find_spec("vllm") is None:
        print(bench.VLLM_ABSENT, file=sys.stderr)
    torch.set_num_threads(threads)
    sizes = bench.BenchSizes(repeats, targets, demonstrations, naive_batch)
    results = bench.benchmark_scoring(
        shape, device=device, lengths=length or bench.USUAL_LENGTHS, sizes=sizes
    )
    if as_json:
        print_json(results)
        return
    for name, row in results.items():
        rates = row["pairs_per_second"].items()
        beside = f"{row['ratio_vs_vllm']:.2f} x vLLM, " if "ratio_vs_vllm" in row else ""
        speed = ", ".join(f"{method} {rate:,.1f}" for method, rate in rates)
        print(
            f"{name}: pairs a second {speed}; {row['ratio_vs_naive_full']:.2f} x full logits, "
            f"{row['ratio_vs_naive_answer']:.2f} x answer logits, {beside}"
            f"{row['fraction_of_peak']:.2f} of the matmul peak"
        )


@app.command("selection")
def bench_selection(
    full: bool = Option(
        False,
        "--full",
        help="Also measure ten million records. This takes minutes and up to 14 GiB of memory.",
    ),
    quick: bool = Option(
        False, "--quick", help="Measure only small kernels, to check that everything runs."
    ),
    only: list[str] | None = Option(
        None,
        help="Measure only cases with this number of records, storage, objective or "
        "optimizer, e.g. 5000, mapped, fl or lazy; repeatable.",
    ),
    repeats: int = Option(
        5, min=1, help="How often each case is measured. The results are medians."
    ),
    as_json: bool = AS_JSON,
) -> None:
    """Measure time and memory of greedy selection.

    Our algorithms are compared with submodlib and apricot.

    Example: delift bench selection --only 5000 --repeats 3
    """
    from delift_pipeline.bench.selection import benchmark_selection, select_cases

    cases = select_cases(full, quick, only or ())
    if not cases:
        raise InputError(
            f"no case is called {', '.join(only or ())}. Try a number of records, such as 5000",
            field="--only",
        )
    results = benchmark_selection(cases, repeats, lambda text: print(text, file=sys.stderr))
    if as_json:
        print_json(results)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in COLUMNS))
    for row in results["rows"]:
        cells = ("-" if row[name] is None else row[name] for name in COLUMNS)
        table.add_row(*(f"{one:,.3g}" if isinstance(one, float) else str(one) for one in cells))
    Console(width=140).print(table)
