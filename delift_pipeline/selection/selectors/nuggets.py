"""Nuggets: records that help most records of an anchor set as their only demonstration.

    score_j = 1/|T| sum_{i in T} [ log p(y_i | j, x_i) > log p(y_i | x_i) ]

is the golden score. The mean gain per token decides among equal scores. T, the anchors, is the
target set, or else a seeded share of the pool. An anchor is not paired with itself. The score is
the share of positive utilities in a column of the kernel, so pairs come from the score store, and
pairs that another arm has scored are reused. Cost: |T| pairs per record. Source: Li et al. 2024
(arXiv 2312.10302).
"""

import numpy as np
import polars as pl
from pydantic import Field

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.selection.language_model import LanguageModel
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import TARGET_SHARE, rank_by_score, target_set
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits


class NuggetsOptions(NoOptions):
    """The options of `nuggets`.

    Attributes:
        target_share: Share of the pool that is the anchor set if the stage has no target set.
    """

    target_share: float = Field(default=TARGET_SHARE, gt=0, le=1)


class NuggetsSelector(Selector):
    """Ranks by the share of anchors that a record helps as demonstration."""

    name = "nuggets"
    options_model = NuggetsOptions
    traits = Traits(reads_model=True)
    default_needs = Needs(model=True, answers=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: NuggetsOptions
    ) -> Selection:
        """Rank the records that can be demonstrations.

        Raises:
            DeliftError: No anchor can be scored, or a score is not finite.
        """
        anchors = target_set(inputs, seed, options.target_share)
        ids, gains = one_shot_gains(inputs.language_model, inputs.pool, anchors.records)
        golden, mean = golden_scores(gains)
        return rank_by_score(self.name, inputs, ids, golden, budget, ties=mean, notes=anchors.notes)


def one_shot_gains(
    model: LanguageModel, pool: pl.DataFrame, anchors: pl.DataFrame
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return how much each record raises the mean log-probability of each anchor's answer.

    Returns:
        The record_ids that can be scored, sorted, and the gains, float64 [anchors, ids], NaN for an
        anchor with itself.

    Raises:
        DeliftError: No anchor can be scored, or a score is not finite.
    """
    from delift_pipeline.scoring.run import score_baseline, score_pairs

    both = pl.concat([pool, anchors], how="diagonal_relaxed").unique("record_id", keep="first")
    encoded = model.encoder.encode(both.sort("record_id"))
    scorable, anchor_ids = set(encoded.ids), set(anchors["record_id"])
    rows = tuple(record for record in encoded.ids if record in anchor_ids)
    if not rows:
        raise DeliftError("no record of the anchor set fits the window, so nuggets cannot rank any")
    columns = tuple(record for record in sorted(pool["record_id"]) if record in scorable)
    block, store = PairBlock("target", rows, columns), model.scores
    if store.missing(PairPlan((block,))).pairs or (store.baseline(rows).tokens == 0).any():
        scorer = model.scorer
        score_baseline(scorer, store, encoded, model.progress, record_ids=rows)
        score_pairs(scorer, store, encoded, PairPlan((block,)), model.progress)
    alone = store.baseline(rows)
    after = store.read_block(columns, rows).sum_logprob.astype(np.float64)
    gains = (after - alone.sum_logprob[:, None]) / alone.tokens[:, None]
    gains[np.array(rows)[:, None] == np.array(columns)] = np.nan
    return columns, gains


def golden_scores(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of anchors that each record helps, and its mean gain; 0 without anchors.

    `gains` are float [anchors, records], NaN for an anchor with itself.
    """
    counts = np.maximum((~np.isnan(gains)).sum(axis=0), 1)
    return (gains > 0).sum(axis=0) / counts, np.nansum(gains, axis=0) / counts
