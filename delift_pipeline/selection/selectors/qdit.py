"""QDIT: records that cover the prompts of the pool and have a high quality.

    f(A) = (1 - alpha) sum_i max_{j in A} S_ij + alpha sum_{j in A} q_j

S_ij is the cosine of the prompts of i and j, at least 0, with S_ii = 1. The quality q_j is the
trust of the record (`selection.trust` with its defaults), or its SelectIT score, mapped so that the
least score of the pool is 0 and the greatest is 1. No term is negative, so f is monotone and
submodular, and greedy reaches 1 - 1/e of the best f. Cost: one embedding per prompt, and the near
pairs (trust) or 5 forward passes per record (SelectIT). Source: Bukharin et al. 2023 (arXiv
2311.14736), who read the quality from a reward model or from a larger model. Both qualities here,
and the default of alpha, are our choice. All stages choose from the pool alone.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.scoring.neighbours import prompt_texts
from delift_pipeline.selection.embedding import DENSE_LIMIT, MODEL, NEAREST, similarities
from delift_pipeline.selection.objectives import Coverage
from delift_pipeline.selection.optimizers import lazy_greedy
from delift_pipeline.selection.options import NoOptions, Stage
from delift_pipeline.selection.ranking import Maximisation, maximise
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.selectors.selectit import (
    RATING_PROMPTS,
    SelectItOptions,
    rating_probabilities,
    sentence_scores,
    token_scores,
)
from delift_pipeline.selection.trust import trust_from_agreement


class QditOptions(NoOptions):
    """The options of `qdit`.

    Attributes:
        alpha: Weight of quality; that of coverage is 1 - alpha.
        quality: `trust` (of near pairs), or `selectit` (the model's rating of each record).
        embedder: Of prompts: `minilm`, `tfidf`, `model` (the language model's own hidden states),
            or a sentence-transformers folder or hub id.
        dense_limit: Up to this many records every similarity is kept.
        coverage_neighbours: Beyond it, how many nearest records of each; all others count as 0.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    quality: Literal["trust", "selectit"] = "trust"
    embedder: str = Field(default="minilm", min_length=1)
    dense_limit: int = Field(default=DENSE_LIMIT, ge=0)
    coverage_neighbours: int = Field(default=NEAREST, ge=1)


class QualityCoverage(Coverage):
    """f above: (1 - alpha) times facility location on a kernel [n, n], plus alpha times quality."""

    name = "qdit"

    def __init__(self, kernel: object, quality: np.ndarray, alpha: float) -> None:
        weights = np.full(len(quality), 1 - alpha)
        super().__init__(kernel, weights=weights, bonus=alpha * quality)


class QditSelector(Selector):
    """Maximises coverage of the prompts and quality of the picks."""

    name = "qdit"
    options_model = QditOptions
    traits = Traits(reads_scores=True, reads_model=True, takes_embedder=True)

    def needs(self, stage: Stage, options: QditOptions) -> Needs:
        """Return near pairs for trust, and the model if it rates or embeds."""
        if options.quality == "selectit":
            return Needs(model=True)
        return Needs("neighbours", model=options.embedder == MODEL)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: QditOptions
    ) -> Selection:
        """Maximise f greedily: with trust over the scorable records, else over the whole pool.

        Raises:
            DeliftError: The block of near pairs lacks records, or no record could be scored.
            InputError: The embedder cannot be loaded, or the model cannot rate.
        """
        ids, trust, blocks = tuple(sorted(inputs.pool["record_id"])), None, {}
        if options.quality == "trust":
            near = inputs.block("neighbours", "distance")
            trust = trust_from_agreement(near, inputs.neighbourhood)
            blocks = {"neighbours": near.hash}
            ids = tuple(record for record in ids if record in trust.places)
        if not ids:
            raise DeliftError(f"no record of the pool has scores, so {self.name} cannot rank any")
        quality = rated_quality(inputs) if trust is None else trust.of(ids)
        similar = similarities(
            inputs.pool,
            options.embedder,
            dense_limit=options.dense_limit,
            neighbours=options.coverage_neighbours,
            model=inputs.model,
            texts_of=prompt_texts,
        )
        objective = QualityCoverage(similar.submatrix(ids, ids), quality, options.alpha)
        part = Maximisation(objective, ids, ids, shares=True)
        selection = maximise(self.name, inputs, [part], lazy_greedy, budget, seed)
        return replace(selection, blocks=blocks, trust=trust)


def rated_quality(inputs: SelectionInputs) -> np.ndarray:
    """Return the SelectIT score of each record of the pool, from 0 to 1, float64 in order of id.

    All are 0 if no score differs.
    """
    pool = inputs.pool.sort("record_id")
    rated = token_scores(rating_probabilities(inputs.language_model, pool, RATING_PROMPTS))
    scores = sentence_scores(rated, SelectItOptions().alpha)
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))
