"""wICI: records that, shown as a demonstration, help hard records with similar prompts.

    IFD_b   = ppl(y_b | x_b) / ppl(y_b)                                        (`selectors.ifd`)
    d_jb    = IFD_b - ppl(y_b | j, x_b) / ppl(y_b) = IFD_b (1 - exp(-U_bj))    U_bj: mean KL utility
    score_j = mean of d_jb (1 - cos_jb) over the probes b of j with d_jb > 0, or 0 without any

cos is that of prompts, at least 0. The probes of j: of the near pairs of j, the most similar
prompts are split into clusters (k-means), and the hardest record of each cluster is a probe. Two
kinds of records are ranked last with a gain of 0, or left out as published: those with IFD_j > 1,
and those whose text resembles a record with a higher score. Cost: the near pairs, which
`delift_trusted` scores too, and 2 forward passes per record for IFD. Source: wICI 2026 (arXiv
2604.25132) and its code. Theirs rates how hard a record is with the DEITA model for complexity.
Here it is the greatest IFD of at most 1. Their probes come from the 32 nearest prompts, ours only
from near pairs, of which a version has about 40 per record.
"""

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.block import Block, duplicate_groups
from delift_pipeline.kernel.columns import to_sparse
from delift_pipeline.scoring.neighbours import prompt_texts
from delift_pipeline.selection.embedding import cosines_at, dense_cosines, embed_texts, record_texts
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import DECIMALS, rank_by_score
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.selectors.ifd import difficulties

ROUNDS = 15
"""The most rounds of k-means, as in the published code."""
_CHUNK = 256


class WiciOptions(NoOptions):
    """The options of `wici`. The defaults are those of the published code, except `left_out`.

    Attributes:
        embedder: Of prompts and of whole records: `minilm`, `tfidf`, `model` (the language model's
            own hidden states), or a sentence-transformers folder or hub id.
        neighbours: How many of the most similar prompts are split into clusters.
        probes: How many clusters, each with one probe.
        alike: A record with at least this cosine to one with a higher score comes last.
        left_out: `last` ranks records with IFD above 1 and those that resemble a better one after
            all others. `drop` leaves them out, as published.
    """

    embedder: str = Field(default="minilm", min_length=1)
    neighbours: int = Field(default=32, ge=1)
    probes: int = Field(default=5, ge=1)
    alike: float = Field(default=0.9, gt=0, allow_inf_nan=False)
    left_out: Literal["last", "drop"] = "last"


class WiciSelector(Selector):
    """Ranks by in-context influence on hard records with similar prompts."""

    name = "wici"
    options_model = WiciOptions
    traits = Traits(reads_scores=True, reads_model=True, takes_embedder=True)
    default_needs = Needs("neighbours", model=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: WiciOptions
    ) -> Selection:
        """Rank the scorable records.

        Raises:
            DeliftError: The block of near pairs lacks records, or `drop` leaves out every record.
            InputError: The embedder cannot be loaded.
        """
        scorable, ratios = difficulties(inputs.language_model, inputs.pool)
        near = inputs.block("neighbours", "kl_mean").restrict(scorable, scorable)
        ratio_of = dict(zip(scorable, np.round(ratios, DECIMALS), strict=True))
        difficulty = np.array([ratio_of[record] for record in near.rows])
        frame = inputs.records_of(near.rows).sort("record_id")
        prompts, texts = (
            embed_texts(each(frame), options.embedder, inputs.model)
            for each in (prompt_texts, record_texts)
        )
        groups = duplicate_groups(frame)
        numbers = np.array([groups[record] for record in near.rows], dtype=np.int64)
        scores = np.round(influence(near, difficulty, prompts, numbers, options, seed), DECIMALS)
        hurt = difficulty > 1
        able = np.flatnonzero(~hurt)
        best_first = able[np.argsort(-scores[able], kind="stable")]
        distinct = find_distinct(texts, best_first, options.alike)
        notes = ()
        if not distinct.all():
            what = "ranked last" if options.left_out == "last" else "left out"
            alike = int((~distinct & ~hurt).sum())
            notes = (
                f"{int(hurt.sum()):,} records have an IFD above 1, and {alike:,} resemble a record "
                f"with a higher score: they are {what}",
            )
        rows = np.flatnonzero(distinct) if options.left_out == "drop" else np.arange(len(distinct))
        if not rows.size:
            raise DeliftError(f"no record has an IFD of at most 1, so {self.name} cannot rank any")
        # Of equal gains of 0, the distinct records come first, then the alike, then the hurt ones.
        step = 1 + scores.max()
        ties = np.where(distinct, 0, scores - step * (1 + hurt))[rows]
        ids, gains = [near.rows[row] for row in rows], np.where(distinct, scores, 0)[rows]
        dropped = len(distinct) - len(rows)
        selection = rank_by_score(
            self.name, inputs, ids, gains, budget, ties=ties, notes=notes, dropped=dropped
        )
        return replace(selection, blocks={"neighbours": near.hash})


def influence(
    near: Block,
    difficulty: np.ndarray,
    prompts: Any,
    groups: np.ndarray,
    options: WiciOptions,
    seed: int,
) -> np.ndarray:
    """Return score_j of each record, float64 [n].

    `near` has mean KL utilities of the same n records in rows and columns. `difficulty` is IFD,
    float [n], and `prompts` are unit embeddings [n, d]. Records of equal `groups`, int [n], are
    copies of each other and no probes of each other.
    """
    from threadpoolctl import threadpool_limits

    stored, scores = to_sparse(near.matrix), np.zeros(len(near.columns))
    # Several threads would add up a centroid in any order, which would decide ties.
    with threadpool_limits(1):
        for j in range(len(scores)):
            column = slice(*stored.indptr[j : j + 2])
            rows, utilities = np.asarray(stored.indices[column]), np.asarray(stored.data[column])
            usable = (groups[rows] != groups[j]) & (difficulty[rows] <= 1)
            rows, utilities = rows[usable], utilities[usable].astype(np.float64)
            cosines = cosines_at(prompts, rows, np.full(len(rows), j))
            nearest = np.lexsort((rows, -cosines))[: options.neighbours]
            members = rows[nearest]
            hardest = hardest_of_clusters(prompts[members], difficulty[members], options, seed)
            probes = nearest[hardest]
            gains = difficulty[rows[probes]] * -np.expm1(-utilities[probes])
            if (helped := gains > 0).any():
                scores[j] = (gains * (1 - cosines[probes]))[helped].mean()
    return scores


def hardest_of_clusters(
    prompts: Any, difficulty: np.ndarray, options: WiciOptions, seed: int
) -> np.ndarray:
    """Split embeddings [n, d] into clusters, and return the position of the hardest of each.

    Of equally hard ones, the first counts. With at most as many records as probes, all are chosen.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(difficulty) <= options.probes:
        return np.arange(len(difficulty))
    starts: Any = 1  # the library's annotation allows only its default
    means = KMeans(options.probes, n_init=starts, max_iter=ROUNDS, random_state=seed)
    with warnings.catch_warnings():
        # Equal prompts give fewer clusters than probes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = means.fit_predict(prompts)
    order = np.argsort(-difficulty, kind="stable")
    return np.sort(order[np.unique(labels[order], return_index=True)[1]])


def find_distinct(embeddings: Any, order: np.ndarray, limit: float) -> np.ndarray:
    """Return which records differ from all distinct ones before them in an order, bool [n].

    They differ if their cosine is below `limit`. `embeddings` are unit rows [n, d], and `order` is
    int, some of the n rows. The other rows are not distinct.
    """
    distinct = np.zeros(embeddings.shape[0], dtype=bool)
    for start in range(0, len(order), _CHUNK):
        part, before = order[start : start + _CHUNK], order[:start][distinct[order[:start]]]
        both = np.concatenate([before, part])
        similar = dense_cosines(embeddings[part], embeddings[both]) >= limit
        for place, record in enumerate(part, start=len(before)):
            row = similar[place - len(before), :place]
            distinct[record] = not row[distinct[both[:place]]].any()
    return distinct
