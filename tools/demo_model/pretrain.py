"""Pretrain the demo model: `python -m tools.demo_model.pretrain --out DIR`.

A Llama of 180,000 parameters learns the families of the demo world and, above all, to read a rule
from a demonstration. Steps, not seconds, bound the run: the same arguments, package versions and
kind of processor give the same weights. It runs on one thread and takes about five minutes of it.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from delift_pipeline.core.progress import LineProgress
from tools.demo_model.corpus import Corpus, Row
from tools.demo_model.gate import in_context_gate
from tools.demo_model.provenance import write_provenance
from tools.demo_model.recipe import (
    SMALL,
    Recipe,
    build_model,
    build_optimizers,
    learning_rate_at,
    repeat_share_at,
)
from tools.demo_model.tokenizer import PAD, build_tokenizer, token_ids

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def collate(rows: Sequence[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows on the right: ids and loss weights, both rows x tokens."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        weights[index, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def weighted_loss(
    model: "LlamaForCausalLM", ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean next-token loss in nats, weighted by token."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


def pretrain(recipe: Recipe) -> "LlamaForCausalLM":
    """Train a model from nothing; leaves torch's thread count at 1."""
    torch.set_num_threads(1)
    model, corpus = build_model(recipe), Corpus(recipe.seed)
    optimizers, pad = build_optimizers(model, recipe.learning_rate), token_ids()[PAD]
    progress = LineProgress(every=10.0)
    with progress.track("pretrain", recipe.steps, "steps") as meter:
        for step in range(recipe.steps):
            size = recipe.early if step < recipe.steps / 2 else recipe.late
            rows = corpus.batch(*size, repeat_share_at(step, recipe))
            loss = weighted_loss(model, *collate(rows, pad))
            _step(model, optimizers, loss, learning_rate_at(step, recipe))
            meter.advance()
            if (step + 1) % 100 == 0:
                progress.say(f"step {step + 1}: loss {loss.item():.3f}")
    return model.eval()


def _step(
    model: "LlamaForCausalLM",
    optimizers: Sequence[torch.optim.Optimizer],
    loss: torch.Tensor,
    learning_rate: float,
) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


def save(model: "LlamaForCausalLM", folder: Path) -> None:
    """Write the weights (safetensors), the configuration and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, save, measure; 0 if the in-context gate passed, 1 if not."""
    parser = argparse.ArgumentParser(description="Pretrain the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the recipe's")
    parser.add_argument("--small", action="store_true", help="the benchmark's smaller scorer")
    chosen = parser.parse_args(arguments)
    recipe = replace(SMALL if chosen.small else Recipe(), seed=chosen.seed)
    recipe = replace(recipe, steps=chosen.steps or recipe.steps)
    started = time.process_time()
    model = pretrain(recipe)
    seconds = time.process_time() - started
    save(model, chosen.out)
    report = in_context_gate(model, build_tokenizer())
    write_provenance(chosen.out, asdict(recipe), seconds, report.as_dict())
    print(f"{report.table()}\n{seconds:.0f} CPU seconds, written to {chosen.out}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
