"""Self-contained HTML pages from the templates beside this file. All text is escaped."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from delift_pipeline.core.formatting import number, option_text, verdict, with_error
from delift_pipeline.evaluation.result import difference_cell, metric_text


def render(template: str, **values: Any) -> str:
    """One page; a name the template asks for and is not given is an error."""
    return _environment().get_template(template).render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        signed=partial(number, sign=True),
        option=option_text,
        mean=with_error,
        metric=metric_text,
        difference=difference_cell,
        verdict=verdict,
    )
    return environment
