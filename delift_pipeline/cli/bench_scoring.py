"""`delift bench scoring`: pairs a second, side by side with what others do."""

import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from delift_pipeline.cli.options import JsonOption, print_json


def scoring(
    shape: Annotated[
        str, typer.Option(help="llama-10m, llama-3.2-1b, llama-3.2-3b, qwen2.5-0.5b, demo, ...")
    ] = "llama-10m",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Turns; each figure is a median.")] = 5,
    targets: Annotated[int, typer.Option(min=1, help="Targets of each demonstration.")] = 16,
    demonstrations: Annotated[int, typer.Option(min=1, help="Demonstrations in a turn.")] = 2,
    length: Annotated[
        list[str] | None, typer.Option(help="short, realistic or tiny; repeatable [the first two].")
    ] = None,
    naive_batch: Annotated[int, typer.Option(min=1, help="Pairs in a naive batch.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Pairs a second of scoring, against padded batches of whole sequences."""
    import torch

    from delift_pipeline.bench.scoring import VLLM_ABSENT, BenchSizes, scoring_bench
    from delift_pipeline.bench.scoring_shapes import LENGTHS, SHAPES, USUAL_LENGTHS
    from delift_pipeline.errors import Fault, Refused

    asked = {"--shape": ([shape], SHAPES), "--length": (length or [], LENGTHS)}
    faults = [
        Fault(f"no {field[2:]} {name!r}: use one of {', '.join(known)}", field=field)
        for field, (names, known) in asked.items()
        for name in names
        if name not in known
    ]
    if faults:
        raise Refused(*faults)
    if find_spec("vllm") is None:
        print(VLLM_ABSENT, file=sys.stderr)
    torch.set_num_threads(threads)
    sizes = BenchSizes(repeats, targets, demonstrations, naive_batch)
    found = scoring_bench(shape, device=device, lengths=length or USUAL_LENGTHS, sizes=sizes)
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
