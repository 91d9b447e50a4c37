"""Compare a selection with its pool and with random selections, without any training.

In experiments with eight selectors on synthetic data, two numbers that need no labels predicted how
well a subset trains: trust of the picks minus trust of the pool (correlation .93 to .97 with wrong
answers), and embedding coverage against random subsets (.69 to .85). Neither predicts in which pool
a selector wins. A subset with less trust than its pool is a reliable warning.

The balance compares pool and subset group by group: tasks, sources, lengths (quarters of the pool
by characters), scripts of the letters, and further columns. A group without a pick gives a warning,
so that the user sees it before a model is trained.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.selection.embedding import Similarities
from delift_pipeline.selection.options import EmbeddingOptions
from delift_pipeline.selection.result import Diagnostics, Selection
from delift_pipeline.selection.selector import SelectionInputs
from delift_pipeline.selection.trust import (
    SUSPECTED_BELOW,
    Trust,
    near_duplicates,
    trust_from_agreement,
    trust_from_support,
)

COVERAGE_LIMIT = 20_000
"""Above this many records embedding coverage is not computed, since it compares all pairs."""
RANDOM_DRAWS = 20


def add_diagnostics(inputs: SelectionInputs, selection: Selection, seed: int = 0) -> Selection:
    """Return the selection with diagnostics, and with trust and near duplicates if known."""
    trust = _trust_from_scores(inputs) if selection.trust is None else selection.trust
    pool = tuple(inputs.pool["record_id"])
    known = set(pool)
    picks = [record for record in selection.ranking if record in known]
    similar = None
    if len(pool) <= COVERAGE_LIMIT:
        similar = inputs.similarities(inputs.pool, EmbeddingOptions(embedder="tfidf"))
    numbers = _trust_numbers(trust, pool, selection.ranking)
    if similar is not None and picks:
        numbers |= _coverage_numbers(similar, picks, seed)
    duplicates = {} if similar is None else near_duplicates(similar)
    return replace(
        selection, diagnostics=Diagnostics(**numbers), trust=trust, duplicates=duplicates
    )


def _trust_from_scores(inputs: SelectionInputs) -> Trust | None:
    """Return trust from what other arms had scored: from near pairs, else from support."""
    with suppress(DeliftError, LookupError):
        return trust_from_agreement(inputs.block("neighbours", "distance"), inputs.neighbourhood)
    with suppress(LookupError):
        trust = trust_from_support(inputs.neighbourhood, inputs.support)
        return trust if trust.ids else None
    return None


def _trust_numbers(
    trust: Trust | None, pool: Sequence[str], ranking: Sequence[str]
) -> dict[str, float]:
    if trust is None:
        return {}
    known, numbers = trust.by_id, {}
    for name, records in (("picks", ranking), ("pool", pool)):
        values = np.array([known[record] for record in records if record in known])
        if not len(values):
            return {}
        numbers[f"trust_{name}"] = float(values.mean())
        numbers[f"suspected_{name}"] = float((values < SUSPECTED_BELOW).mean())
    return numbers


def _coverage_numbers(similar: Similarities, picks: list[str], seed: int) -> dict[str, float]:
    random, n = np.random.default_rng(seed), len(similar.ids)
    chosen = np.flatnonzero(pl.Series(similar.ids).is_in(picks).to_numpy())
    draws = (random.permutation(n)[: len(picks)] for _ in range(RANDOM_DRAWS))
    means = []
    for part in (chosen, *draws):
        best = similar.matrix[:, part].max(axis=1)
        best = best if isinstance(best, np.ndarray) else best.toarray()
        means.append(float(best.mean()))
    return {"coverage": means[0], "coverage_random": float(np.mean(means[1:]))}


_SHARES = ("pool_share", "subset_share", "shift")
BALANCE_SCHEMA = pl.Schema(
    dict.fromkeys(("by", "group"), pl.String())
    | dict.fromkeys(("pool", "subset"), pl.UInt32())
    | dict.fromkeys(_SHARES, pl.Float64())
    | {"vanished": pl.Boolean()}
)
MOST_GROUPS = 50
"""Only the largest groups of a column are compared."""
LETTERS_READ = 500
MOST_NAMES = 5
COLUMNS = ("task", "source")
_QUARTERS = ("shortest quarter", "second quarter", "third quarter", "longest quarter")


def balance_table(
    pool: pl.DataFrame,
    ranking: Sequence[str],
    columns: Mapping[str, Sequence[object]] | None = None,
) -> pl.DataFrame:
    """Compare a subset with its pool by length, script, and `task` and `source` if it has them.

    Chosen records that are not in the pool (replayed ones) do not count. `columns` are further
    groupings by name: one value per record, in the order of `pool`.

    Returns:
        One row per group (`BALANCE_SCHEMA`), largest groups of the pool first. `shift` is the share
        of the subset minus the share of the pool.
    """
    chosen = pool["record_id"].is_in(list(ranking)).to_numpy()
    rows = pool.select("instruction", "input", "output").iter_rows()
    texts = ["\n".join(filter(None, parts)) for parts in rows]
    groupings: dict[str, Sequence[object]] = {
        **{name: pool[name].to_list() for name in COLUMNS if name in pool.columns},
        "length": length_quarters(texts),
        "script": [main_script(text) for text in texts],
        **(columns or {}),
    }
    return pl.concat([_group_rows(name, values, chosen) for name, values in groupings.items()])


def vanished_group_warnings(table: pl.DataFrame) -> tuple[str, ...]:
    """Return one warning for each grouping that has groups without a pick."""
    lines = []
    for (name,), part in table.filter(pl.col("vanished")).group_by("by", maintain_order=True):
        rows = part.select("group", "pool").head(MOST_NAMES).rows()
        names = ", ".join(f"{group} ({count:,})" for group, count in rows)
        more = "" if part.height <= MOST_NAMES else f" and {part.height - MOST_NAMES:,} more"
        lost, verb = ("1 group", "is") if part.height == 1 else (f"{part.height:,} groups", "are")
        lines.append(f"warning: {lost} by {name} {verb} not in the subset: {names}{more}")
    return tuple(lines)


def _group_rows(name: str, values: Sequence[object], chosen: np.ndarray) -> pl.DataFrame:
    names = ["(none)" if value is None or value == "" else str(value) for value in values]
    counted = pl.DataFrame({"group": names, "chosen": chosen}).group_by("group")
    table = counted.agg(pool=pl.len(), subset=pl.col("chosen").sum())
    table = table.sort("pool", "group", descending=[True, False]).head(MOST_GROUPS)
    size, picks = max(1, len(names)), max(1, int(chosen.sum()))
    shares = {"pool_share": pl.col("pool") / size, "subset_share": pl.col("subset") / picks}
    shift = pl.col("subset_share") - pl.col("pool_share")
    table = table.with_columns(**shares, by=pl.lit(name), vanished=pl.col("subset") == 0)
    return table.with_columns(shift=shift).select(BALANCE_SCHEMA.names()).cast(BALANCE_SCHEMA)


def length_quarters(texts: Sequence[str]) -> list[str]:
    """Return the quarter of the pool that each text belongs to by its length in characters."""
    if not texts:
        return []
    sizes = [len(text) for text in texts]
    quarters = np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]), sizes, side="left")
    return [_QUARTERS[quarter] for quarter in quarters]


def main_script(text: str) -> str:
    """Return the script of most letters of a text, by their Unicode names; `none` without any."""
    letters = filter(str.isalpha, text[:LETTERS_READ])
    counts = Counter(unicodedata.name(one, "unknown").split(" ", 1)[0].lower() for one in letters)
    return max(counts, key=lambda name: (counts[name], name)) if counts else "none"
