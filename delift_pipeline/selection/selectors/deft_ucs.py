"""DEFT-UCS: easy and hard records of every cluster of embeddings, without a trained model.

    c(i)     the cluster of record i: k-means on unit embeddings e_i
    dist_i = 1 - cos(e_i, mean of the cluster)
    each cluster gives its nearest records (easy) and its farthest (hard); the share `easy` is easy

Cost: one embedding per record and k-means, nothing quadratic. Source: Das and Khetan 2023, DEFT-UCS
(arXiv 2310.16776). The DELIFT paper runs it with 7 clusters, half easy, equal parts. With `base`, a
share of the picks is random (D_base in the paper). The published code uses positions within a
cluster as positions in the dataset, and a dot product as a distance; both are corrected here.
"""

from collections import deque
from typing import Any, Literal

import numpy as np
from pydantic import Field

from delift_pipeline.scoring.neighbours import COSINE_DECIMALS, embed
from delift_pipeline.selection.embedding import record_texts
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import rank_by_order, refuse_auto
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits

STARTS = 10
"""How many random starts k-means has; the tightest result is used."""


class DeftUcsOptions(NoOptions):
    """The options of `deft_ucs`.

    Attributes:
        embedder: Of whole records: `minilm`, `tfidf`, or a sentence-transformers folder or hub id.
        clusters: Number of clusters, at most the number of records.
        easy: Share of each cluster's picks that are nearest its centroid; the others are farthest.
        parts: `equal` gives every cluster the same count, `proportional` a count by its size.
        base: Share of the picks that are random.
    """

    embedder: str = Field(default="minilm", min_length=1)
    clusters: int = Field(default=7, ge=1)
    easy: float = Field(default=0.5, ge=0, le=1)
    parts: Literal["equal", "proportional"] = "equal"
    base: float = Field(default=0.0, ge=0, lt=1)


class DeftUcsSelector(Selector):
    """Picks easy and hard records of all clusters, so that every prefix has the same shares."""

    name = "deft_ucs"
    options_model = DeftUcsOptions
    traits = Traits(takes_embedder=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: DeftUcsOptions
    ) -> Selection:
        """Rank the whole pool.

        Raises:
            InputError: The embedder cannot be loaded, or the budget is `auto`.
        """
        refuse_auto(self.name, inputs)
        ordered = inputs.pool.sort("record_id")
        ids = tuple(ordered["record_id"])
        embeddings = embed(record_texts(ordered), options.embedder)
        clusters, distances = cluster_records(embeddings, options.clusters, seed)
        order = mix_in_base(rank_by_clusters(clusters, distances, options), options.base, seed)
        details = {"cluster_sizes": np.bincount(clusters).tolist()}
        return rank_by_order(self.name, inputs, ids, order, budget, details=details)


def cluster_records(embeddings: Any, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each record, int64 [n], and its cosine distance to the centroid.

    `embeddings` are float [n, d] of unit (or zero) length, an array or a CSR matrix. `count` is the
    most clusters. The distances are float [n].
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    starts: Any = STARTS  # the library's annotation allows only its default
    means = KMeans(min(count, embeddings.shape[0]), n_init=starts, random_state=seed)
    # Several threads would add up a centroid in any order, which would decide ties.
    with threadpool_limits(1):
        labels = means.fit_predict(embeddings).astype(np.int64)
    centres = means.cluster_centers_
    norms = np.maximum(np.linalg.norm(centres, axis=1), np.finfo(np.float32).tiny)
    own = (centres / norms[:, None])[labels]
    cosines = (
        np.einsum("ij,ij->i", embeddings, own)
        if isinstance(embeddings, np.ndarray)
        else np.asarray(embeddings.multiply(own).sum(axis=1)).ravel()
    )
    return labels, np.round(1 - cosines, COSINE_DECIMALS)


def rank_by_clusters(
    clusters: np.ndarray, distances: np.ndarray, options: DeftUcsOptions
) -> np.ndarray:
    """Return all records in order. Clusters alternate, and easy and hard records within a cluster.

    The next place goes to the cluster with the greatest weight / (2 picks + 1) (Webster's method).
    So the shares of every prefix are as exact as whole records allow. When a cluster is used up,
    the others get its places. `clusters` are int [n], and `distances` float [n] to the centroid.
    """
    places = []
    for cluster in range(int(clusters.max()) + 1):
        members = np.flatnonzero(clusters == cluster)
        near = deque(members[np.argsort(distances[members], kind="stable")].tolist())
        weight = 1.0 if options.parts == "equal" else float(len(members))
        for number in range(len(near)):
            record = near.popleft() if is_due(options.easy, number) else near.pop()
            places.append(((2 * number + 1) / weight, cluster, record))
    return np.array([record for _, _, record in sorted(places)], dtype=np.int64)


def is_due(share: float, place: int) -> bool:
    """Whether this place, counted from 0, is one of the evenly spread places of a share."""
    return int(share * (place + 1) + 0.5) > int(share * place + 0.5)


def mix_in_base(order: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the order with random records mixed in, so that a share of every prefix is random."""
    if not share:
        return order
    random = iter(np.random.default_rng(seed).permutation(order).tolist())
    chosen, mixed = iter(order.tolist()), {}
    for place in range(len(order)):
        record = next(r for r in (random if is_due(share, place) else chosen) if r not in mixed)
        mixed[record] = None
    return np.array(list(mixed), dtype=np.int64)
