"""What a selection looks like beside its pool and beside random ones, without any training.

Of the label-free numbers that were compared, two went with how well a subset trained, over eight
selectors on a synthetic world: the trust of the picks against the pool's (correlation .93 to .97
under wrong answers) and embedding coverage against random (.69 to .85). Neither says in which pool
a selector wins. Picks that are trusted less than their pool are a reliable warning.

The balance compares pool and subset group by group: tasks, sources, lengths (quarters of the pool
by characters), scripts of the letters, and any column named. A group that vanishes is a warning, so
that it is seen before a model is trained.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.selection.embedding import Similarities, similarities
from delift_pipeline.selection.result import Diagnostics, Selection
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.trust import SUSPECTED_BELOW, Trust, near_duplicates, trust_of

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
    numbers = _trust_numbers(trust, pool, selection.ranking)
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


BALANCE_SCHEMA = pl.Schema(
    {
        "by": pl.String(),
        "group": pl.String(),
        "pool": pl.UInt32(),
        "subset": pl.UInt32(),
        "pool_share": pl.Float64(),
        "subset_share": pl.Float64(),
        "shift": pl.Float64(),
        "vanished": pl.Boolean(),
    }
)
MOST_GROUPS = 50
"""A column with more groups is not one to balance by; its largest groups are shown."""
LETTERS_READ = 500
NAMED = 5
COLUMNS = ("task", "source")
_QUARTERS = ("shortest quarter", "second quarter", "third quarter", "longest quarter")


def balance(
    pool: pl.DataFrame,
    ranking: Sequence[str],
    columns: Mapping[str, Sequence[object]] | None = None,
) -> pl.DataFrame:
    """Compare a subset with its pool.

    Args:
        pool: The records chosen from; `task` and `source` are read where they are there.
        ranking: record_ids chosen; those that are not in the pool (replayed ones) do not count.
        columns: Further groupings by name: one value a record, aligned with `pool`.

    Returns:
        One row a group (`BALANCE_SCHEMA`), largest groups of the pool first; shift is the share of
        the subset minus the share of the pool.
    """
    chosen = pool["record_id"].is_in(list(ranking)).to_numpy()
    groupings: dict[str, Sequence[object]] = {
        name: pool[name].to_list() for name in COLUMNS if name in pool.columns
    }
    texts = _texts(pool)
    groupings |= {"length": lengths(texts), "script": [script(text) for text in texts]}
    groupings |= dict(columns or {})
    frames = [_groups(name, values, chosen) for name, values in groupings.items()]
    return pl.concat(frames)


def vanished(table: pl.DataFrame) -> tuple[str, ...]:
    """One warning for each grouping that lost groups."""
    lines = []
    for (name,), part in table.filter(pl.col("vanished")).group_by("by", maintain_order=True):
        named = ", ".join(
            f"{g} ({n:,})" for g, n in part.select("group", "pool").head(NAMED).rows()
        )
        more = "" if part.height <= NAMED else f" and {part.height - NAMED:,} more"
        lost = "1 group" if part.height == 1 else f"{part.height:,} groups"
        verb = "is" if part.height == 1 else "are"
        lines.append(f"warning: {lost} by {name} {verb} not in the subset: {named}{more}")
    return tuple(lines)


def _groups(name: str, values: Sequence[object], chosen: np.ndarray) -> pl.DataFrame:
    names = ["(none)" if value is None or value == "" else str(value) for value in values]
    before = Counter(names)
    after = Counter(group for group, kept in zip(names, chosen, strict=True) if kept)
    size, picks = max(1, len(names)), max(1, int(chosen.sum()))
    largest = sorted(before, key=lambda group: (-before[group], group))[:MOST_GROUPS]
    rows = [
        {
            "by": name,
            "group": group,
            "pool": before[group],
            "subset": after[group],
            "pool_share": before[group] / size,
            "subset_share": after[group] / picks,
            "shift": after[group] / picks - before[group] / size,
            "vanished": after[group] == 0,
        }
        for group in largest
    ]
    return pl.DataFrame(rows, schema=BALANCE_SCHEMA)


def _texts(pool: pl.DataFrame) -> list[str]:
    return [
        "\n".join(part for part in parts if part)
        for parts in pool.select("instruction", "input", "output").iter_rows()
    ]


def lengths(texts: Sequence[str]) -> list[str]:
    """The quarter of the pool that each text's length in characters falls in."""
    sizes = np.array([len(text) for text in texts])
    if not len(sizes):
        return []
    borders = np.quantile(sizes, [0.25, 0.5, 0.75])
    return [_QUARTERS[int(np.searchsorted(borders, size, side="left"))] for size in sizes]


def script(text: str) -> str:
    """The script that most letters of a text are in, by their Unicode names; `none` without any."""
    found: Counter[str] = Counter()
    for letter in text[:LETTERS_READ]:
        if letter.isalpha():
            found[unicodedata.name(letter, "unknown").split(" ", 1)[0].lower()] += 1
    return max(found, key=lambda name: (found[name], name)) if found else "none"
