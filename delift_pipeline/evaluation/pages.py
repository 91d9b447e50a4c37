"""Self-contained HTML pages, where all text is escaped, and Markdown from Jinja templates."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from delift_pipeline.core.formatting import number, option_text, verdict, with_error
from delift_pipeline.evaluation.result import difference_cell, metric_text

HERE = Path(__file__).parent
_LONGEST_NAME = 80
_UNSAFE = re.compile(r"[\x00-\x1f\x7f`|<>\u2028\u2029]+")


def render(template: str, folder: Path = HERE, **values: Any) -> str:
    """One page of a template in `folder`; a name it asks for and is not given is an error.

    In Markdown (`.md.j2`) nothing is escaped: text from data must go through `code` or `quoted`.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        signed=partial(number, sign=True),
        option=option_text,
        mean=with_error,
        plain_mean=partial(with_error, digits=4, ascii_only=True),
        metric=metric_text,
        difference=difference_cell,
        verdict=verdict,
        code=_code,
        quoted=json.dumps,
        count="{:,}".format,
    )
    return environment.get_template(template).render(**values)


def _code(text: str) -> str:
    """Text that comes from a user's data, safe between back-ticks in a table's cell."""
    plain = _UNSAFE.sub(" ", str(text)).strip()
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}..."
