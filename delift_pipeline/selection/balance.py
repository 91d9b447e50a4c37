"""Whom a selection leaves out: the pool against the subset, group by group.

Groups are tasks, sources, lengths (quarters of the pool by characters), scripts of the letters, and
any column named. A group that vanishes is a warning, so that it is seen before a model is trained.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

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
