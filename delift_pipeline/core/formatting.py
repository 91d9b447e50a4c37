"""Measurements as text: the same "mean ± error" in tables, pages, cards and sentences."""

from typing import Any, Literal

ABSENT = "–"
CLEAR = 2.0
"""How many standard errors a difference must exceed to be resolved."""

Style = Literal["good", "bad", "soft"]


def number(
    value: float | None, digits: int = 3, *, sign: bool = False, ascii_only: bool = False
) -> str:
    """Format a number with a typographic minus sign and thousands separators; None as a dash.

    With `ascii_only`, for terminals and Markdown, it has an ASCII minus sign and no separators.
    """
    if value is None:
        return "-" if ascii_only else ABSENT
    plus = "+" if sign else ""
    if ascii_only:
        return f"{value:{plus}.{digits}f}"
    return f"{value:{plus},.{digits}f}".replace("-", "−")


def with_error(
    value: float | None,
    error: float | None,
    digits: int = 3,
    *,
    sign: bool = False,
    ascii_only: bool = False,
) -> str:
    """Format a value and its standard error as `0.500 ± 0.204`; without an error, the value."""
    text = number(value, digits, sign=sign, ascii_only=ascii_only)
    if value is None or error is None:
        return text
    return f"{text} ± {number(error, digits, ascii_only=ascii_only)}"


def verdict(mean: float, error: float, improvement: float) -> str:
    """Describe a mean difference: `0.500 ± 0.204 better`, or that it is not clear.

    `improvement` is the mean with the sign that makes positive better.
    """
    if verdict_style(error, improvement) == "soft":
        return f"no clear difference ({with_error(mean, error, sign=True)})"
    return f"{with_error(abs(mean), error)} {'better' if improvement > 0 else 'worse'}"


def verdict_style(error: float, improvement: float) -> Style:
    """Return how a page colours a difference: `soft` within `CLEAR` standard errors of zero."""
    if abs(improvement) <= CLEAR * error:
        return "soft"
    return "good" if improvement > 0 else "bad"


def option_text(value: Any) -> str:
    """Format an option's value for a table."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(option_text(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
