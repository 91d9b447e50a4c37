"""Show by enumeration: the log-probability utility is conditional pointwise mutual information.

The world is small enough to enumerate. It draws a rule r, then records one after another. Each has
a question x (independent of r) and an answer y of two tokens from p(y | r, x). `MixtureModel`
is the exact predictor: p(next token | text) = sum_r p(r | text) p(next | r, text). For a target
(x, y) and a demonstration j = (x_j, y_j) drawn by the same rule

    U_ij = log p(y | j, x) - log p(y | x)                     what the engine computes
    pmi  = log p(y, j | x) / (p(y | x) p(j | x))              from the joint distribution
    sum over j and y of p(j, y | x) U_ij = I(Y; J | X = x)    conditional mutual information

The left side comes from token log-probabilities in float32, one forward pass a pair. The right side
comes from sums over all rules in float64. Both must agree to 1e-6.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from delift_pipeline.scoring.engines import answer_logprobs

QUESTIONS, WORDS, RULES = 3, 3, 4
START, STOP = QUESTIONS + WORDS, QUESTIONS + WORDS + 1
VOCABULARY = STOP + 1
RECORDS = [(x, y, z) for x in range(QUESTIONS) for y in range(WORDS) for z in range(WORDS)]
"""All possible records: every question with every answer."""
IMPOSSIBLE = -1e4
"""The log-probability of a token that cannot come next."""


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
    def draw(cls, seed: int) -> "Rules":
        """Draw rules with a seed."""
        random = np.random.default_rng(seed)
        answers = random.dirichlet(np.ones(WORDS**2), size=(RULES, QUESTIONS))
        return cls(
            random.dirichlet(np.ones(RULES)), answers.reshape(RULES, QUESTIONS, WORDS, WORDS)
        )

    def joint(self) -> np.ndarray:
        """Return p(y, j | x) times the number of questions, float64 [records, records]."""
        flat = self.answers.reshape(len(self.prior), len(RECORDS))
        return np.einsum("r,ri,rj->ij", self.prior, flat, flat)

    def alone(self) -> np.ndarray:
        """Return p(y | x) of each record, float64 [records]."""
        return self.prior @ self.answers.reshape(len(self.prior), len(RECORDS))


class MixtureModel(torch.nn.Module):
    """The exact predictor of a world, with the interface of a causal language model."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules, self.anchor = rules, torch.nn.Embedding(1, 1)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return a weight, from which the engine reads the device."""
        return self.anchor

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """Return the log-probabilities of the next token after every prefix."""
        rows = [self._next_token_logprobs(ids) for ids in input_ids.tolist()]
        return SimpleNamespace(logits=torch.tensor(np.array(rows)))

    def _next_token_logprobs(self, ids: list[int]) -> np.ndarray:
        """Return log-probabilities of the next tokens of one text, float64 [tokens, vocabulary]."""
        logprobs = np.full((len(ids), VOCABULARY), IMPOSSIBLE)
        weights, record = self.rules.prior.copy(), []
        for position, token in enumerate(ids):
            record = [] if token in (START, STOP) else [*record, token]
            if len(record) == 0:
                logprobs[position, :QUESTIONS] = -np.log(QUESTIONS)
                continue
            answers = self.rules.answers[:, record[0]]
            if len(record) == 1:
                words = weights / weights.sum() @ answers.sum(axis=2)
                logprobs[position, QUESTIONS:START] = np.log(words)
            elif len(record) == 2:
                both = weights / weights.sum() @ answers[:, record[1] - QUESTIONS]
                logprobs[position, QUESTIONS:START] = np.log(both / both.sum())
            else:
                weights = weights * answers[:, record[1] - QUESTIONS, record[2] - QUESTIONS]
                logprobs[position, STOP] = 0.0
        return logprobs


def utilities(rules: Rules) -> np.ndarray:
    """Return U of every record (row) after every record (column), computed by the engine."""
    model: Any = MixtureModel(rules)
    texts = [np.array([x, QUESTIONS + y, QUESTIONS + z, STOP]) for x, y, z in RECORDS]
    begin = np.array([START])

    def sums(prefix: np.ndarray) -> list[float]:
        scores = (answer_logprobs(model, prefix, text[:1], text[1:]) for text in texts)
        return [score.astype(np.float64).sum() for score in scores]

    alone = np.array(sums(begin))
    return np.stack([np.array(sums(np.concatenate([begin, text]))) - alone for text in texts]).T


def pointwise_information(rules: Rules) -> np.ndarray:
    """Return log p(y, j | x) / (p(y | x) p(j | x)) by enumeration, float64 [records, records]."""
    return np.log(rules.joint()) - np.add.outer(np.log(rules.alone()), np.log(rules.alone()))


def mutual_information(rules: Rules, pointwise: np.ndarray) -> float:
    """Return the mean of `pointwise` over p(x) p(j, y | x), which is I(Y; J | X) in nats."""
    return float((rules.joint() / QUESTIONS**2 * pointwise).sum())


@dataclass(frozen=True)
class TheoryCell:
    """One world: compares the engine's utilities with the enumerated information."""

    seed: int
    stage: str = "theory"
    wrong_share: float = 0.0

    @property
    def key(self) -> str:
        """Identifies the world; also the name of the result file."""
        return f"theory-{self.seed}-{QUESTIONS}-{WORDS}-{RULES}"

    def run(self, folder: Any) -> list[dict[str, Any]]:
        """Return rows with the largest difference and both conditional mutual informations."""
        rules = Rules.draw(self.seed)
        ours, exact = utilities(rules), pointwise_information(rules)
        information = "conditional_mutual_information"
        values = [
            ("utility", "largest_difference", float(np.abs(ours - exact).max())),
            ("utility", information, mutual_information(rules, ours)),
            ("enumeration", information, mutual_information(rules, exact)),
        ]
        same = {"mode": "enumeration", "budget": 1.0, "draw": 0, "size": len(RECORDS)}
        same |= {"wrong": 0.0, "pairs_per_record": float(len(RECORDS))}
        return [
            {"selector": name, "metric": metric, "value": value, **same}
            for name, metric, value in values
        ]
