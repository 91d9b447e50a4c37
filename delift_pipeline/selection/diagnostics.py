"""What a selection looks like beside its pool and beside random ones, without any training.

Of the label-free numbers that were compared, two went with how well a subset trained, over eight
selectors on a synthetic world: the trust of the picks against the pool's (correlation .93 to .97
under wrong answers) and embedding coverage against random (.69 to .85). Neither says in which pool
a selector wins. Picks that are trusted less than their pool are a reliable warning.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.errors import DeliftError, Refused
from delift_pipeline.selection.embedding import Similarities, similarities
from delift_pipeline.selection.reasons_trust import near_duplicates
from delift_pipeline.selection.result import Diagnostics, Selection
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.trust import SUSPECTED_BELOW, Trust, trust_of

COVERAGE_LIMIT = 20_000
"""Above this many records embedding coverage is not computed: it compares all with all."""
RANDOM_DRAWS = 20


def diagnosed(inputs: SelectionInputs, selection: Selection, seed: int = 0) -> Selection:
    """The selection with its diagnostics, and with trust and near duplicates where there are any.

    Near pairs are read where they were scored, whether or not the selector asked for them.
    """
    trust = selection.trust or _trust_there_is(inputs)
    pool = tuple(inputs.pool["record_id"])
    known = set(pool)
    picks = [record for record in selection.ranking if record in known]
    similar = similarities(inputs.pool) if len(pool) <= COVERAGE_LIMIT else None
    numbers = {**_trust_numbers(trust, pool, selection.ranking)}
    if similar is not None and picks:
        numbers |= _coverage_numbers(similar, picks, seed)
    duplicates = {} if similar is None else near_duplicates(similar)
    return replace(
        selection, diagnostics=Diagnostics(**numbers), trust=trust, duplicates=duplicates
    )


def _trust_there_is(inputs: SelectionInputs) -> Trust | None:
    """Trust from near pairs, where they were scored for whatever reason."""
    try:
        return trust_of(inputs.block("neighbours", "distance"), inputs.neighbourhood)
    except (Refused, DeliftError, LookupError):
        return None


def _trust_numbers(
    trust: Trust | None, pool: Sequence[str], ranking: Sequence[str]
) -> dict[str, float]:
    if trust is None:
        return {}
    known = trust.by_id
    of_picks = np.array([known[record] for record in ranking if record in known])
    of_pool = np.array([known[record] for record in pool if record in known])
    if not (len(of_picks) and len(of_pool)):
        return {}
    return {
        "trust_picks": float(of_picks.mean()),
        "trust_pool": float(of_pool.mean()),
        "suspected_picks": float((of_picks < SUSPECTED_BELOW).mean()),
        "suspected_pool": float((of_pool < SUSPECTED_BELOW).mean()),
    }


def _coverage_numbers(similar: Similarities, picks: list[str], seed: int) -> dict[str, float]:
    ids = pl.Series(similar.ids)
    random = np.random.default_rng(seed)
    draws = [random.permutation(len(ids))[: len(picks)] for _ in range(RANDOM_DRAWS)]
    chosen = np.flatnonzero(ids.is_in(picks).to_numpy())
    return {
        "coverage": _covered(similar.matrix, chosen),
        "coverage_random": float(np.mean([_covered(similar.matrix, draw) for draw in draws])),
    }


def _covered(matrix: Any, picks: np.ndarray) -> float:
    best = matrix[:, picks].max(axis=1)
    return float((best if isinstance(best, np.ndarray) else best.toarray()).mean())
