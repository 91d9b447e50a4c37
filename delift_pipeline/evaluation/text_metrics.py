"""Metrics that compare the text of a generated answer with its reference."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np

ROUGES = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
CLOSED_ANSWERS = {"yes", "no", "noanswer"}
FINAL_NUMBER = re.compile(r"####\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?)")


def exact_match(generated: str, reference: str) -> float:
    """Return 1.0 if both are equal, else 0.0; the amount of white space does not count."""
    return float(generated.split() == reference.split())


def rouge(
    generated: Sequence[str], references: Sequence[str], names: Sequence[str] = ROUGES
) -> dict[str, list[float]]:
    """Return the F1 of each ROUGE for each pair, from rouge-score with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(names), use_stemmer=True)
    scores = [scorer.score(r, g) for g, r in zip(generated, references, strict=True)]
    return {name: [float(s[name].fmeasure) for s in scores] for name in names}


def squad_words(text: str) -> list[str]:
    """Return the words of an answer by the rules of SQuAD's evaluation script.

    Small letters, no ASCII punctuation, no articles (Rajpurkar et al. 2016).
    """
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", letters).split()


def squad_exact_match(generated: str, reference: str) -> float:
    """Return 1.0 if both have the same words (`squad_words`), else 0.0."""
    return float(squad_words(generated) == squad_words(reference))


def squad_f1(generated: str, reference: str) -> float:
    """Return the F1 of the shared words (`squad_words`) with repeats; 1.0 if both have none."""
    ours, theirs = squad_words(generated), squad_words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def hotpotqa_f1(generated: str, reference: str) -> float:
    """Return `squad_f1`, but 0.0 if they differ and one is yes, no or noanswer (Yang et al.)."""
    texts = {" ".join(squad_words(text)) for text in (generated, reference)}
    return 0.0 if len(texts) == 2 and texts & CLOSED_ANSWERS else squad_f1(generated, reference)


def final_answer(generated: str, reference: str) -> float | None:
    """Return 1.0 if the numbers after the last `####` are equal (GSM8K, Cobbe et al. 2021).

    Thousands separators, a dollar sign and trailing zeros do not count. The result is None if the
    reference has no such number.
    """
    answer, reference_answer = (
        [Decimal(number.replace(",", "")) for number in FINAL_NUMBER.findall(text)[-1:]]
        for text in (generated, reference)
    )
    return float(answer == reference_answer) if reference_answer else None


def embedding_similarity(
    generated: Sequence[str], references: Sequence[str], embedder: str, device: str = "cpu"
) -> list[float]:
    """Return the cosine of each pair's sentence embeddings; 0.0 if the generated text is blank.

    Raises:
        InputError: the embedder cannot be loaded.
    """
    ours = _embed_texts(tuple(generated), embedder, device)
    theirs = _embed_texts(tuple(references), embedder, device)
    cosines = np.clip((ours * theirs).sum(axis=1), -1.0, 1.0)
    blank = np.array([not text.strip() for text in generated])
    return [float(value) for value in np.where(blank, 0.0, cosines)]


@lru_cache(maxsize=4)
def _embed_texts(texts: tuple[str, ...], embedder: str, device: str) -> np.ndarray:
    """Return rows of length 1, float32 `[texts, dimensions]`; equal texts are embedded once.

    Every arm is compared with the same references, so the cache saves embedding them again.
    """
    distinct = sorted(set(texts))
    rows = _embedding_model(embedder, device).encode(
        distinct, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )
    position = {text: i for i, text in enumerate(distinct)}
    return np.asarray(rows, dtype=np.float32)[[position[text] for text in texts]]


@lru_cache(maxsize=2)
def _embedding_model(embedder: str, device: str) -> Any:
    """Load the embedding model, once for each process and device."""
    from delift_pipeline.scoring.neighbours import load_embedder

    return load_embedder(embedder, device)
