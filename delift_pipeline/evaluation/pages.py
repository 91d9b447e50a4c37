"""Self-contained HTML pages from the templates beside this file. All text is escaped."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ABSENT = "–"


def render(template: str, **values: Any) -> str:
    """One page; a name the template asks for and is not given is an error."""
    return _environment().get_template(template).render(**values)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, with a real minus sign."""
    return ABSENT if value is None else f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference for a table, its sign always shown."""
    return ABSENT if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def with_error(value: float | None, error: float | None) -> str:
    """A value and its standard error."""
    if value is None:
        return ABSENT
    return number(value) if error is None else f"{number(value)} ± {number(error)}"


def plain(value: Any) -> str:
    """An option's value for a table."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, plain=plain, signed=signed)
    return environment
