"""`delift bench scoring`: pairs a second, side by side with what others do."""

from typing import Annotated

import typer

from delift_pipeline.cli.options import JsonOption, print_json


def scoring(
    shape: Annotated[
        str, typer.Option(help="llama-10m, llama-3.2-1b, llama-3.2-3b, qwen2.5-0.5b, ...")
    ] = "llama-10m",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Turns; each figure is a median.")] = 5,
    targets: Annotated[int, typer.Option(min=1, help="Targets of each demonstration.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Pairs a second of scoring, against padded batches of whole sequences."""
    import torch

    from delift_pipeline.bench.scoring import known_shapes, scoring_bench
    from delift_pipeline.errors import Fault, Refused

    if shape not in known_shapes():
        known = ", ".join(known_shapes())
        raise Refused(Fault(f"no shape {shape!r}: use one of {known}", field="--shape"))
    torch.set_num_threads(threads)
    found = scoring_bench(shape, device=device, repeats=repeats, targets=targets)
    if as_json:
        print_json(found)
        return
    for name, row in found.items():
        rates = row["pairs_per_second"].items()
        speed = ", ".join(f"{method} {rate:,.1f}" for method, rate in rates)
        print(
            f"{name}: pairs a second {speed}; {row['ratio_vs_naive_full']:.2f} x full logits, "
            f"{row['ratio_vs_naive_answer']:.2f} x answer logits, "
            f"{row['fraction_of_peak']:.2f} of the matmul peak"
        )
