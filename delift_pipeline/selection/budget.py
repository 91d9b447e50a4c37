"""How many records a budget buys.

Beside shares, counts and `full` there are two budgets whose number of records only the selection
itself shows: `20000tokens`, what the subset may cost, and `auto` (`auto:0.05`), which stops where
the gain of a pick falls under a share of the first pick's.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import polars as pl

from delift_pipeline.core.errors import Refused

BudgetText = float | int | str
"""A budget as written: 0.3, 50, `full`, `20000tokens`, `auto` or `auto:0.05`."""

FULL, AUTO = "full", "auto"
AUTO_SHARE = 0.01
_TOKENS = re.compile(r"([0-9][0-9_,]*)\s*tokens?", re.IGNORECASE)
_AUTO = re.compile(r"auto(?::([0-9.eE+-]+))?", re.IGNORECASE)
_MEANING = (
    "write a number below 1 for a share, an integer from 1 for a count, full, 20000tokens, or auto "
    "(auto:0.05 stops at 5 % of the first gain)"
)


@dataclass(frozen=True)
class Budget:
    """What a budget allows.

    Attributes:
        count: Records at most.
        tokens: What they may cost together, or None.
        stop: Share of the first gain under which nothing more is picked; 0 picks on.
    """

    count: int
    tokens: int | None = None
    stop: float = 0.0

    @property
    def is_open_ended(self) -> bool:
        """Whether only the selection shows how many records it buys."""
        return self.tokens is not None or self.stop > 0


def parse_budget(budget: BudgetText, n: int) -> Budget:
    """What a budget of any kind allows from a pool of n.

    Raises:
        Refused: the pool is empty, or the budget is none of these.
    """
    text = budget.strip() if isinstance(budget, str) else ""
    if tokens := _TOKENS.fullmatch(text):
        if (number := int(re.sub("[_,]", "", tokens[1]))) < 1:
            raise _bad_budget(budget)
        return Budget(resolve_budget(FULL, n), tokens=number)
    if auto := _AUTO.fullmatch(text):
        share = AUTO_SHARE if auto[1] is None else _parse_number(auto[1])
        if not 0 < share < 1:
            raise _bad_budget(budget)
        return Budget(resolve_budget(FULL, n), stop=float(share))
    return Budget(resolve_budget(budget, n))


def resolve_budget(budget: BudgetText, n: int) -> int:
    """How many records a share above 0 and below 1, a count from 1 to n or `full` buys of n.

    A share is taken of the whole pool after folding (unscorable records counted), rounded half up
    on its decimal digits, at least 1. Texts are read like numbers.

    Raises:
        Refused: the pool is empty, the budget is no such value, or it is above n.
    """
    if n < 1:
        raise Refused("the pool is empty: nothing can be selected", field="budget")
    if is_full(budget):
        return n
    number = _parse_number(budget.strip()) if isinstance(budget, str) else budget
    if isinstance(number, bool) or not isinstance(number, float | int):
        raise _bad_budget(number)
    if 0 < number < 1:
        share = Decimal(repr(float(number))) * n
        return max(1, int(share.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    if not isinstance(number, int) or number < 1:
        raise _bad_budget(number)
    if number > n:
        raise Refused(f"{number:,} is above the pool's {n:,} records", field="budget")
    return number


def is_full(budget: BudgetText) -> bool:
    """Whether the budget is `full`: as many records as there are."""
    return isinstance(budget, str) and budget.strip().lower() == FULL


def _parse_number(text: str) -> float | int:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise _bad_budget(text)


def _bad_budget(budget: object) -> Refused:
    return Refused(f"{budget!r} is no budget: {_MEANING}", field="budget")


BYTES_PER_TOKEN = 4
TOKENS = "tokens"


def token_costs(pool: pl.DataFrame) -> np.ndarray:
    """Tokens of each record, float64 [n], at least 1.

    A column `tokens` is believed; without one, a token is taken for every 4 bytes of prompt and
    answer in UTF-8, which is near for English under most tokenizers and generous elsewhere.
    """
    if TOKENS in pool.columns:
        return np.maximum(pool[TOKENS].fill_null(1).cast(pl.Float64).to_numpy(), 1)
    texts = pl.col("instruction", "input", "output").fill_null("").str.len_bytes()
    size = pool.select(pl.sum_horizontal(texts).cast(pl.Float64)).to_series().to_numpy()
    return np.maximum(np.ceil(size / BYTES_PER_TOKEN), 1)
