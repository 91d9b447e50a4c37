"""`delift bench`: is it fast, beside what others do, and is it worth it?"""

import sys
from importlib.util import find_spec

import typer
from typer import Option

from delift_pipeline.cli.bench_quality import quality
from delift_pipeline.cli.options import JsonOption, print_json
from delift_pipeline.core.errors import Fault, Refused

SHOWN = (
    "n",
    "storage",
    "objective",
    "optimizer",
    "seconds",
    "times_a_read",
    "peak_rss_mib",
    "beyond_kernel_mib",
    "ratio_vs_submodlib",
    "ratio_vs_apricot",
    "same_ranking",
)

app = typer.Typer(help="Measure speed and worth.", no_args_is_help=True)
app.command("quality")(quality)


@app.command("scoring")
def scoring(
    shape: str = Option(
        "llama-10m", help="llama-10m, llama-3.2-1b, llama-3.2-3b, qwen2.5-0.5b, demo, ..."
    ),
    device: str = Option("cpu", help="cpu or cuda."),
    repeats: int = Option(5, min=1, help="Turns; each figure is a median."),
    targets: int = Option(16, min=1, help="Targets of each demonstration."),
    demonstrations: int = Option(2, min=1, help="Demonstrations in a turn."),
    length: list[str] | None = Option(
        None, help="short, realistic or tiny; repeatable [the first two]."
    ),
    naive_batch: int = Option(16, min=1, help="Pairs in a naive batch."),
    threads: int = Option(1, min=1, help="CPU threads."),
    as_json: JsonOption = False,
) -> None:
    """Pairs a second of scoring, against padded batches of whole sequences."""
    import torch

    from delift_pipeline.bench import scoring as bench

    asked = {"--shape": ([shape], bench.SHAPES), "--length": (length or [], bench.LENGTHS)}
    faults = [
        Fault(f"no {field[2:]} {name!r}: use one of {', '.join(known)}", field=field)
        for field, (names, known) in asked.items()
        for name in names
        if name not in known
    ]
    if faults:
        raise Refused(*faults)
    if find_spec("vllm") is None:
        print(bench.VLLM_ABSENT, file=sys.stderr)
    torch.set_num_threads(threads)
    sizes = bench.BenchSizes(repeats, targets, demonstrations, naive_batch)
    found = bench.scoring_bench(
        shape, device=device, lengths=length or bench.USUAL_LENGTHS, sizes=sizes
    )
    if as_json:
        print_json(found)
        return
    for name, row in found.items():
        rates = row["pairs_per_second"].items()
        beside = f"{row['ratio_vs_vllm']:.2f} x vLLM, " if "ratio_vs_vllm" in row else ""
        speed = ", ".join(f"{method} {rate:,.1f}" for method, rate in rates)
        print(
            f"{name}: pairs a second {speed}; {row['ratio_vs_naive_full']:.2f} x full logits, "
            f"{row['ratio_vs_naive_answer']:.2f} x answer logits, {beside}"
            f"{row['fraction_of_peak']:.2f} of the matmul peak"
        )


@app.command("selection")
def selection(
    full: bool = Option(False, "--full", help="Add ten million records (14 GiB, minutes)."),
    quick: bool = Option(False, "--quick", help="Small kernels only: does everything run?"),
    only: list[str] | None = Option(
        None, help="A size, storage, objective or optimizer, e.g. 5000; repeatable."
    ),
    repeats: int = Option(5, min=1, help="Turns; each figure is a median."),
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of greedy selection, against submodlib, apricot and one read."""
    from delift_pipeline.bench.selection import chosen_cases, selection_bench

    cases = chosen_cases(full, quick, only or ())
    if not cases:
        raise Refused(f"no case is called {', '.join(only or ())}", field="--only")
    found = selection_bench(cases, repeats, lambda text: print(text, file=sys.stderr))
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in SHOWN))
    for row in found["rows"]:
        table.add_row(*(_text(row[name]) for name in SHOWN))
    Console(width=140).print(table)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) else str(value)
