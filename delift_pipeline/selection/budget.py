"""How many records a budget buys."""

import math
from decimal import ROUND_HALF_UP, Decimal

from delift_pipeline.errors import Fault, Refused

FULL = "full"
_MEANING = "write a number below 1 for a share, an integer from 1 for a count, or full"


def resolve_budget(budget: float | int | str, n: int) -> int:
    """The number of records a budget buys from a pool of n.

    A share is taken of the whole pool after folding (unscorable records counted), rounded half up
    on its decimal digits, at least 1.

    Args:
        budget: A share above 0 and below 1, a count from 1 to n, or `full`; texts are read alike.
        n: Records in the pool.

    Raises:
        Refused: the pool is empty, the budget is no such value, or it is above n.
    """
    if n < 1:
        raise Refused(Fault("the pool is empty: nothing can be selected", field="budget"))
    parsed = _parsed(budget)
    if parsed is None:
        return n
    if isinstance(parsed, Decimal):
        return max(1, int((parsed * n).quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    if parsed > n:
        raise Refused(Fault(f"{parsed:,} is above the pool's {n:,} records", field="budget"))
    return parsed


def _parsed(budget: float | int | str) -> Decimal | int | None:
    """A share as Decimal, a count as int, None for `full`."""
    if isinstance(budget, str):
        if budget.strip().lower() == FULL:
            return None
        budget = _number(budget.strip())
    if isinstance(budget, bool) or not math.isfinite(budget):
        raise _refused(budget)
    if 0 < budget < 1:
        return Decimal(repr(float(budget)))
    if isinstance(budget, int) and budget >= 1:
        return budget
    raise _refused(budget)


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError as error:
        raise _refused(text) from error


def _refused(budget: object) -> Refused:
    return Refused(Fault(f"{budget!r} is no budget: {_MEANING}", field="budget"))
