"""Greedy answers of many stacked adapters at once, and how near they come to the references."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from delift_pipeline.bench.quality_training import EVALUATED_AT_ONCE, Stack, StackedLora
from delift_pipeline.evaluation.text_metrics import embedding_similarity, rouge, squad_f1
from delift_pipeline.training.batches import Example

ROUGES = ("rouge1", "rougeL")
EMBEDDER = "minilm"
MARGIN = 2
"""How far past the longest reference an answer may run."""


@torch.inference_mode()
def greedy_answers(
    lora: StackedLora, examples: Sequence[Example], stop: int
) -> list[list[list[int]]]:
    """What every run answers, [R][n] lists of tokens without the stop token.

    Args:
        lora: R runs.
        examples: n records; their prompts are answered.
        stop: The end-of-text token.
    """
    longest = max(len(example.answer) for example in examples) + MARGIN
    parts = [
        _answered(lora, examples[first : first + EVALUATED_AT_ONCE], stop, longest)
        for first in range(0, len(examples), EVALUATED_AT_ONCE)
    ]
    return [[answer for part in parts for answer in part[run]] for run in range(lora.runs)]


def _answered(
    lora: StackedLora, examples: Sequence[Example], stop: int, longest: int
) -> list[list[list[int]]]:
    lengths = torch.tensor([len(example.prompt) for example in examples])
    ids = torch.zeros(lora.runs, len(examples), int(lengths.max()) + longest, dtype=torch.int64)
    for row, example in enumerate(examples):
        ids[:, row, : len(example.prompt)] = torch.from_numpy(example.prompt.astype(np.int64))
    ends = lengths.expand(lora.runs, -1).clone()
    done = torch.zeros_like(ends, dtype=torch.bool)
    for _ in range(longest):
        width = int(ends.max())
        at = torch.arange(len(examples)) * width + ends - 1
        tokens = lora.logits(Stack(ids[:, :, :width], at, at, at, at)).argmax(-1)
        ids.scatter_(2, ends[..., None], tokens[..., None])
        done |= tokens == stop
        ends += (~done).long()
        if bool(done.all()):
            break
    return [
        [
            ids[run, row, int(lengths[row]) : int(ends[run, row])].tolist()
            for row in range(len(examples))
        ]
        for run in range(lora.runs)
    ]


def written(tokenizer: Any, answers: Sequence[list[int]]) -> list[str]:
    """Answers as text."""
    return [
        tokenizer.decode(
            answer, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()
        for answer in answers
    ]


def text_metrics(samples: pl.DataFrame) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-L, token F1 and embedding similarity of generated and reference."""
    generated, references = samples["generated"].to_list(), samples["reference"].to_list()
    found: dict[str, list[float]] = dict(rouge(generated, references, ROUGES))
    found["squad_f1"] = [squad_f1(*pair) for pair in zip(generated, references, strict=True)]
    found["embedding_similarity"] = embedding_similarity(generated, references, EMBEDDER)
    return {name: float(np.mean(values)) for name, values in found.items()}
