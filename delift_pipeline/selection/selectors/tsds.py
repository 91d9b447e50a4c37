"""TSDS: records near the targets, by optimal transport that shares mass among near duplicates.

Each target q spreads a mass s over its nearest records, the nearest first. Record i takes at most
1 / rho_i of it, so a dense region of the pool takes as much as a single record:

    rho_i  = sum_l max(0, 1 - |x_i - x_l|^2 / sigma^2)     density, over the nearest l, i included
    p_i    = sum_q (mass of q that i takes) / (M s)        M targets; p sums to 1
    cost_q = d_{q,k+1} s - sum_{l <= k} d_ql / rho_l       k: the last record that q fills

d are Euclidean distances of unit embeddings. s grows, with the records of all targets in order of
mass, until alpha / C sum_q cost_q >= (1 - alpha) M. A small alpha spreads over more records, a
large one keeps to the nearest. The ranking is a draw by p without replacement, or goes by p.
Records with p = 0 come last, the nearest to a target first. Cost: one embedding per record and
target, and the cosines of all records near any target. Source: Liu et al. 2024 (arXiv 2410.11303)
and their code. They draw with replacement, and search approximately among at most a tenth of the
pool. Here neighbours are exact, and no record is drawn twice. All targets count as one task. A
target from the pool is not compared with itself.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from delift_pipeline.selection.embedding import MODEL, dense_cosines, embed_texts, record_texts
from delift_pipeline.selection.options import NoOptions, Stage
from delift_pipeline.selection.ranking import (
    TARGET_SHARE,
    rank_by_order,
    rank_by_score,
    refuse_auto,
    target_set,
)
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits

_CHUNK = 256


class TsdsOptions(NoOptions):
    """The options of `tsds`. The defaults are those of the published code, except `alpha`.

    The published code has alpha .5. The default here is that of its port in DataFlex.

    Attributes:
        embedder: Of whole records: `minilm`, `tfidf`, `model` (the language model's own hidden
            states), or a sentence-transformers folder or hub id.
        alpha: Weight of nearness to the targets; that of diversity is 1 - alpha.
        scale: C above, the scale of distances. A greater one spreads over more records.
        sigma: Records farther apart do not add to each other's density; 0 ignores density.
        neighbours: How many of its nearest records a target can spread over.
        density_neighbours: How many of its nearest records add to a record's density.
        draw: `sample` draws records by p with the seed, `greatest` ranks them by p.
        target_share: Share of the pool that serves as target set if the stage has none.
    """

    embedder: str = Field(default="minilm", min_length=1)
    alpha: float = Field(default=0.6, ge=0, le=1)
    scale: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    sigma: float = Field(default=0.75, ge=0, allow_inf_nan=False)
    neighbours: int = Field(default=5000, ge=1)
    density_neighbours: int = Field(default=1000, ge=1)
    draw: Literal["sample", "greatest"] = "sample"
    target_share: float = Field(default=TARGET_SHARE, gt=0, le=1)


class TsdsSelector(Selector):
    """Draws records by how much mass of the targets they take."""

    name = "tsds"
    options_model = TsdsOptions
    traits = Traits(reads_model=True, takes_embedder=True)

    def needs(self, stage: Stage, options: TsdsOptions) -> Needs:
        """Return the model if it is the embedder."""
        return Needs(model=options.embedder == MODEL)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: TsdsOptions
    ) -> Selection:
        """Rank the whole pool. The gains of `greatest` are p times the size of the pool.

        Raises:
            InputError: The embedder cannot be loaded, or the budget is `auto` for a draw.
        """
        if options.draw == "sample":
            refuse_auto(self.name, inputs)
        targets = target_set(inputs, seed, options.target_share)
        pool = inputs.pool.sort("record_id")
        ids, count = tuple(pool["record_id"]), pool.height
        both = [*record_texts(pool), *record_texts(targets.records)]
        embeddings = embed_texts(both, options.embedder, inputs.model)
        place_of = {record: place for place, record in enumerate(ids)}
        own = np.array([place_of.get(record, -1) for record in targets.ids])
        near = nearest_records(embeddings[:count], embeddings[count:], own, options.neighbours)
        density = densities(embeddings[:count], np.unique(near.records), options)
        chances = probabilities(near, density, options)
        notes, support = targets.notes, int((chances > 0).sum())
        if support < budget:
            notes += (f"{support:,} records are near a target, and all others are ranked last",)
        if options.draw == "greatest":
            gains = chances * count
            return rank_by_score(self.name, inputs, ids, gains, budget, ties=near.best, notes=notes)
        order = draw_without_replacement(chances, near.best, seed)
        return rank_by_order(self.name, inputs, ids, order, budget, notes=notes)


class NearRecords(NamedTuple):
    """The records nearest to each target, nearest first.

    Attributes:
        records: Positions in the pool, int64 [targets, k].
        distances: Their Euclidean distances to the target, float64 [targets, k].
        best: Greatest cosine of each record of the pool to a target, float64 [pool].
    """

    records: np.ndarray
    distances: np.ndarray
    best: np.ndarray


def nearest_records(pool: Any, targets: Any, own: np.ndarray, most: int) -> NearRecords:
    """Find the `most` records nearest to each target, without the target itself.

    `pool` and `targets` are unit embeddings [n, d] and [m, d]. `own`, int [m], is the target's
    position in the pool, or -1. Of equally near records, the one with the smaller number is first.
    """
    n, m = pool.shape[0], targets.shape[0]
    k = min(most, n - bool((own >= 0).any()))
    records, cosines, best = np.empty((m, k), np.int64), np.empty((m, k)), np.full(n, -1.0)
    for start in range(0, m, _CHUNK):
        part = slice(start, start + _CHUNK)
        similar = dense_cosines(targets[part], pool)
        rows = np.flatnonzero(own[part] >= 0)
        similar[rows, own[part][rows]] = -1
        best = np.maximum(best, similar.max(axis=0))
        similar[rows, own[part][rows]] = -np.inf
        records[part] = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        cosines[part] = np.take_along_axis(similar, records[part], axis=1)
    return NearRecords(records, np.sqrt(np.maximum(2 - 2 * cosines, 0)), best)


def densities(pool: Any, members: np.ndarray, options: TsdsOptions) -> np.ndarray:
    """Return rho of each record, float64 [n], among the records `members`; 1 for all others."""
    density = np.ones(pool.shape[0])
    if options.sigma == 0:
        return density
    near, most = pool[members], min(options.density_neighbours, len(members))
    for start in range(0, len(members), _CHUNK):
        cosines = dense_cosines(near[start : start + _CHUNK], near)
        terms = np.maximum(0, 1 - (2 - 2 * cosines) / options.sigma**2)
        greatest = np.partition(terms, len(members) - most, axis=1)[:, len(members) - most :]
        # A record counts itself with 1, also one without words.
        density[members[start : start + _CHUNK]] = np.maximum(greatest.sum(axis=1), 1)
    return density


def probabilities(near: NearRecords, density: np.ndarray, options: TsdsOptions) -> np.ndarray:
    """Return p of each record of the pool, float64 [n]; it sums to 1 if there is any neighbour."""
    (m, k), mass = near.records.shape, 1 / density[near.records]
    if not near.records.size:
        return np.zeros(len(density))
    filled = np.cumsum(mass, axis=1)
    # A step fills one record of one target; its cost is that of moving on to the next record.
    steps = filled[:, :-1]
    costs = near.distances[:, 1:] * steps - np.cumsum(near.distances * mass, axis=1)[:, :-1]
    rises = np.diff(costs, axis=1, prepend=0)
    target, place = np.divmod(np.arange(m * (k - 1)), max(k - 1, 1))
    order = np.lexsort((target, place, steps.ravel()))
    reached = options.alpha / options.scale * np.cumsum(rises.ravel()[order])
    enough = np.flatnonzero(reached >= (1 - options.alpha) * m)
    last = enough[0] if len(enough) else -1
    s = steps.ravel()[order[last]] if len(order) else 1.0
    taken = np.clip(s - (filled - mass), 0, mass)
    # The last record takes what is left.
    taken[:, -1] = np.maximum(s - (filled - mass)[:, -1], 0)
    return np.bincount(near.records.ravel(), (taken / (m * s)).ravel(), len(density))


def draw_without_replacement(chances: np.ndarray, best: np.ndarray, seed: int) -> np.ndarray:
    """Return all records in order, int64 [n]: drawn one after the other by their chances.

    Those without a chance follow, the greatest `best` first. Adding a Gumbel variable to the
    logarithms and sorting is the same as drawing one by one (Gumbel top-k, Vieira 2014).
    """
    noise = np.random.default_rng(seed).gumbel(size=len(chances))
    with np.errstate(divide="ignore"):
        keys = np.log(chances) + noise
    return np.lexsort((-best, -keys))
