"""The log-probability utility is conditional pointwise mutual information: shown by enumeration.

A world that can be enumerated: a rule r is drawn, then records of it, one after another, each a
question x (independent of r) and an answer y of two tokens from p(y | r, x). `MixtureModel` is its
exact predictor: p(next token | text) = sum_r p(r | text) p(next | r, text). For a target (x, y) and
a demonstration j = (x_j, y_j) drawn by the same rule

    U_ij = log p(y | j, x) - log p(y | x)                     what the engine reads off it
    pmi  = log p(y, j | x) / (p(y | x) p(j | x))              from the joint distribution
    sum over j and y of p(j, y | x) U_ij = I(Y; J | X = x)    conditional mutual information

The left side comes from token log-probabilities in float32, one forward pass a pair, the right side
from sums over all rules in float64. Both must agree to 1e-6.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.naive import NaiveEngine

QUESTIONS, WORDS, RULES = 3, 3, 4
START, STOP = QUESTIONS + WORDS, QUESTIONS + WORDS + 1
VOCABULARY = STOP + 1
MODE = "enumeration"
RECORDS = QUESTIONS * WORDS * WORDS
IMPOSSIBLE = -1e4
"""Log-probability of a token that cannot follow."""


@dataclass(frozen=True)
class Rules:
    """The world: p(r), and p(first, second | r, x).

    Attributes:
        prior: float64 [rules].
        answers: float64 [rules, questions, words, words].
    """

    prior: np.ndarray
    answers: np.ndarray

    @classmethod
    def drawn(cls, seed: int) -> "Rules":
        """Rules by seed."""
        random = np.random.default_rng(seed)
        answers = random.dirichlet(np.ones(WORDS**2), size=(RULES, QUESTIONS))
        return cls(
            random.dirichlet(np.ones(RULES)), answers.reshape(RULES, QUESTIONS, WORDS, WORDS)
        )

    @property
    def flat(self) -> np.ndarray:
        """p(y | r, x) by record number, float64 [rules, records]."""
        return self.answers.reshape(RULES, RECORDS)


class MixtureModel(torch.nn.Module):
    """The exact predictor of a world, with the face of a causal language model."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules, self.anchor = rules, torch.nn.Embedding(1, 1)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Where the model lies."""
        return self.anchor

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """Log-probabilities of the next token after every prefix."""
        rows = [self._text(ids) for ids in input_ids.tolist()]
        return _Output(torch.tensor(np.array(rows)))

    def _text(self, ids: list[int]) -> np.ndarray:
        """float64 [tokens, vocabulary]."""
        found = np.full((len(ids), VOCABULARY), IMPOSSIBLE)
        weights, record = self.rules.prior.copy(), []
        for place, token in enumerate(ids):
            record = [] if token in (START, STOP) else [*record, token]
            if len(record) == 3:
                x, first, second = record[0], record[1] - QUESTIONS, record[2] - QUESTIONS
                weights = weights * self.rules.answers[:, x, first, second]
            found[place] = self._next(weights / weights.sum(), record)
        return found

    def _next(self, weights: np.ndarray, record: list[int]) -> np.ndarray:
        logs = np.full(VOCABULARY, IMPOSSIBLE)
        if not record:
            logs[:QUESTIONS] = -np.log(QUESTIONS)
        elif len(record) == 1:
            firsts = self.rules.answers[:, record[0]].sum(axis=2)
            logs[QUESTIONS:START] = np.log(weights @ firsts)
        elif len(record) == 2:
            both = weights @ self.rules.answers[:, record[0], record[1] - QUESTIONS]
            logs[QUESTIONS:START] = np.log(both / both.sum())
        else:
            logs[STOP] = 0.0
        return logs


@dataclass(frozen=True)
class _Output:
    logits: torch.Tensor


def all_records() -> EncodedRecords:
    """Every question with every answer, as the scoring engine reads records."""
    one = np.array(
        [
            [x, QUESTIONS + first, QUESTIONS + second, STOP]
            for x in range(QUESTIONS)
            for first in range(WORDS)
            for second in range(WORDS)
        ],
        dtype=np.int32,
    )
    starts = np.arange(RECORDS + 1, dtype=np.int64) * one.shape[1]
    begin = np.array([START], dtype=np.int32)
    ids = tuple(f"{number:032x}" for number in range(RECORDS))
    lengths = np.ones(RECORDS, dtype=np.int32)
    return EncodedRecords(
        ids, begin, begin, one.ravel(), starts, lengths, one.ravel(), starts, {}, {}
    )


def utilities(rules: Rules) -> np.ndarray:
    """U of every record (row) after every record (column) by the scoring engine, [records]^2."""
    records, rows = all_records(), np.arange(RECORDS)
    engine: Any = NaiveEngine(MixtureModel(rules))  # pyright: ignore[reportArgumentType]
    jobs = [Job(records.prefix(), rows), *(Job(records.prefix(int(j)), rows) for j in rows)]
    sums = np.stack([_sums(scores) for scores in engine.score(records, jobs)])
    return (sums[1:] - sums[0]).T


def _sums(scores: Any) -> np.ndarray:
    """Summed log-probability of each answer, float64."""
    ends = np.cumsum(scores.lengths)[:-1]
    return np.array([part.astype(np.float64).sum() for part in np.split(scores.logprobs, ends)])


def pointwise_information(rules: Rules) -> np.ndarray:
    """The logarithm of p(y, j | x) / (p(y | x) p(j | x)) by enumeration, float64 [records]^2."""
    flat = rules.flat
    together = np.einsum("r,ri,rj->ij", rules.prior, flat, flat) / QUESTIONS
    alone, shown = rules.prior @ flat, rules.prior @ flat / QUESTIONS
    return np.log(together) - np.log(alone)[:, None] - np.log(shown)[None]


def mutual_information(rules: Rules, pointwise: np.ndarray) -> float:
    """Mean of `pointwise` over p(x) p(j, y | x): I(Y; J | X) in nats."""
    joint = np.einsum("r,ri,rj->ij", rules.prior, rules.flat, rules.flat) / QUESTIONS**2
    return float((joint * pointwise).sum())


@dataclass(frozen=True)
class TheoryCell:
    """One world: utilities by the engine beside the enumerated information."""

    seed: int
    stage: str = "theory"
    wrong_share: float = 0.0

    @property
    def key(self) -> str:
        """Names the world."""
        return f"theory-{self.seed}-{QUESTIONS}-{WORDS}-{RULES}"

    def run(self, folder: Any) -> list[dict[str, Any]]:
        """Rows of the largest difference and of both conditional mutual informations."""
        rules = Rules.drawn(self.seed)
        ours, exact = utilities(rules), pointwise_information(rules)
        values = [
            ("utility", "largest_difference", float(np.abs(ours - exact).max())),
            ("utility", "conditional_mutual_information", mutual_information(rules, ours)),
            ("enumeration", "conditional_mutual_information", mutual_information(rules, exact)),
        ]
        return [
            {
                "selector": name,
                "mode": MODE,
                "budget": 1.0,
                "draw": 0,
                "metric": metric,
                "value": value,
                "size": RECORDS,
                "wrong": 0.0,
                "pairs_per_record": float(RECORDS),
            }
            for name, metric, value in values
        ]
