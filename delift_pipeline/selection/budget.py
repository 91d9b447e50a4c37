"""How many records a budget allows.

A budget is a share, a count or `full`, or it has no fixed number of records: `20000tokens` limits
the tokens of the subset, and `auto` (`auto:0.05`) stops when the gain of a pick falls below a share
of the first gain.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import polars as pl

from delift_pipeline.core.errors import InputError

BudgetText = float | int | str
"""A budget as written: 0.3, 50, `full`, `20000tokens`, `auto` or `auto:0.05`."""

FULL, AUTO = "full", "auto"
AUTO_SHARE = 0.01
_TOKENS = re.compile(r"([0-9][0-9_,]*)\s*tokens?", re.IGNORECASE)
_AUTO = re.compile(r"auto(?::([0-9.eE+-]+))?", re.IGNORECASE)
_FORMS = (
    "Write a number below 1 for a share, an integer from 1 for a count, full, 20000tokens, or auto "
    "(auto:0.05 stops at 5 % of the first gain)"
)


@dataclass(frozen=True)
class Budget:
    """The limits that a budget sets.

    Attributes:
        count: The most records.
        tokens: The most tokens of all records together, or None.
        stop: Selection stops at a gain below this share of the first gain; 0 never stops it.
    """

    count: int
    tokens: int | None = None
    stop: float = 0.0

    @property
    def is_open_ended(self) -> bool:
        """Whether the number of records is known only after the selection."""
        return self.tokens is not None or self.stop > 0


def parse_budget(budget: BudgetText, n: int) -> Budget:
    """Return the limits that a budget of any kind sets for a pool of n records.

    Raises:
        InputError: The pool is empty, or the budget has none of the known forms.
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
    """Return how many of n records a share above 0 and below 1, a count from 1 to n or `full` is.

    A share is taken of the whole pool after folding, with its unscorable records. It is rounded
    half up on its decimal digits, and is at least 1 record. Texts are read like numbers.

    Raises:
        InputError: The pool is empty, the budget is not such a value, or it is above n.
    """
    if n < 1:
        raise InputError(
            "the pool is empty. Give at least one record to select from", field="budget"
        )
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
        reason = f"{number:,} is above the pool's {n:,} records. Lower the budget, or use full"
        raise InputError(reason, field="budget")
    return number


def is_full(budget: BudgetText) -> bool:
    """Whether the budget is `full`: as many records as there are."""
    return isinstance(budget, str) and budget.strip().lower() == FULL


def _parse_number(text: str) -> float | int:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    raise _bad_budget(text)


def _bad_budget(budget: object) -> InputError:
    return InputError(f"{budget!r} is not a budget. {_FORMS}", field="budget")


BYTES_PER_TOKEN = 4
TOKENS = "tokens"


def token_costs(pool: pl.DataFrame) -> np.ndarray:
    """Return the tokens of each record, float64 [n], at least 1.

    A column `tokens` is taken as it is. Without one, 4 bytes of prompt and answer in UTF-8 count as
    one token. That is close for English with most tokenizers, and too few for most other languages.
    """
    if TOKENS in pool.columns:
        return np.maximum(pool[TOKENS].fill_null(1).cast(pl.Float64).to_numpy(), 1)
    texts = pl.col("instruction", "input", "output").fill_null("").str.len_bytes()
    size = pool.select(pl.sum_horizontal(texts).cast(pl.Float64)).to_series().to_numpy()
    return np.maximum(np.ceil(size / BYTES_PER_TOKEN), 1)
