"""Greedy answers of many stacked adapters at once, and how near they come to the references."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.evaluation.text_metrics import embedding_similarity, rouge, squad_f1

ROUGES = ("rouge1", "rougeL")
EMBEDDER = "minilm"


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
