"""The in-context gate: does a demonstration teach the demo model a rule it has never seen?

`python -m tools.demo_model.gate DIR` prints the table and ends with 0 if the gate passed, else
with 1. Per family and trial a fresh rule is drawn; its target record is answered with nothing
before it, after one demonstration of the same rule, and after one record of another family.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from delift_pipeline.demo import words as w
from delift_pipeline.demo.rules import FAMILIES, MAPPED, draw_rule
from tools.demo_model.corpus import Example, draw_example
from tools.demo_model.gate_report import FamilyResult, GateReport
from tools.demo_model.tokenizer import PAD, START, encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GATE_SEED, GATE_TRIALS = 99, 300
BATCH = 64


@dataclass(frozen=True)
class Trial:
    """A target, a demonstration of its rule, and a record of another family."""

    target: Example
    same: Example
    other: Example


def draw_trials(family: str, trials: int, rng: random.Random) -> list[Trial]:
    """Draw trials of a family; a map holds one key, so that the demonstration tells it."""
    encode = encoder()
    drawn = []
    for _ in range(trials):
        mode, other_mode = rng.sample(w.MODES, 2)
        rule = draw_rule(family, mode, rng, keys=1 if family in MAPPED else None)
        another = rng.choice([name for name in FAMILIES if name != family])
        other = draw_example(draw_rule(another, other_mode, rng), rng, encode)
        target, same = (draw_example(rule, rng, encode) for _ in range(2))
        drawn.append(Trial(target, same, other))
    return drawn


@torch.inference_mode()
def answer_losses(
    model: "PreTrainedModel", sequences: Sequence[tuple[list[int], list[int]]], pad: int
) -> tuple[list[float], list[bool]]:
    """Per (context, answer) the mean loss per answer token in nats; is the arg max right?"""
    losses: list[float] = []
    exact: list[bool] = []
    for first in range(0, len(sequences), BATCH):
        part = sequences[first : first + BATCH]
        length = max(len(context) + len(answer) for context, answer in part)
        padded = [c + a + [pad] * (length - len(c) - len(a)) for c, a in part]
        logits = model(input_ids=torch.tensor(padded), use_cache=False).logits
        for row, (context, answer) in zip(logits, part, strict=True):
            at = slice(len(context) - 1, len(context) + len(answer) - 1)
            scores, truth = row[at].float().log_softmax(-1), torch.tensor(answer)
            losses.append(-scores.gather(1, truth[:, None]).mean().item())
            exact.append(bool((scores.argmax(-1) == truth).all()))
    return losses, exact


def _measure(
    model: "PreTrainedModel", family: str, trials: Sequence[Trial], start: int, pad: int
) -> FamilyResult:
    def run(before: Sequence[list[int]]) -> tuple[float, float]:
        sequences = [
            ([start, *shown, *trial.target.prompt], trial.target.answer)
            for shown, trial in zip(before, trials, strict=True)
        ]
        losses, exact = answer_losses(model, sequences, pad)
        return sum(losses) / len(losses), sum(exact) / len(exact)

    alone, exact_alone = run([[] for _ in trials])
    shown, exact_shown = run([trial.same.prompt + trial.same.answer for trial in trials])
    distracted, _ = run([trial.other.prompt + trial.other.answer for trial in trials])
    return FamilyResult(family, alone, shown, distracted, exact_alone, exact_shown)


def in_context_gate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    seed: int = GATE_SEED,
    trials: int = GATE_TRIALS,
) -> GateReport:
    """Measure every family on fresh rules.

    Args:
        model: A causal language model over the demo vocabulary, on the CPU.
        tokenizer: Its tokenizer.
        seed: Of the trials.
        trials: Trials a family.

    Raises:
        ValueError: The tokenizer is not the demo world's.
    """
    ids = encoder()(f"{START} {PAD}")
    if tokenizer.convert_tokens_to_ids([START, PAD]) != ids:
        raise ValueError("the tokenizer is not the demo world's: <s> and <pad> have other ids")
    results = [
        _measure(
            model, family, draw_trials(family, trials, random.Random(f"{seed} {family}")), *ids
        )
        for family in FAMILIES
    ]
    return GateReport(seed, trials, tuple(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the gate's table for a model folder; 0 if it passed, else 1."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Measure in-context learning of the demo model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=GATE_SEED)
    parser.add_argument("--trials", type=int, default=GATE_TRIALS)
    chosen = parser.parse_args(arguments)
    model = AutoModelForCausalLM.from_pretrained(chosen.folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.folder)
    report = in_context_gate(model, tokenizer, chosen.seed, chosen.trials)
    print(report.table())
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
