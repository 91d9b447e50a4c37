"""Our values in the forms MLflow takes: names, parameters, finite metrics, data sets."""

import json
import math
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors as cs

from delift_pipeline.storage.hashing import digest_text

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

PREFIX = "delift."
LONGEST_PARAM = 500
_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
_MODEL_NAME = re.compile(r"[/:.%\"']+")
_LONGEST_NAME = 250


def valid_name(name: str) -> str:
    """A metric or parameter name with only the characters MLflow takes."""
    return _NAME.sub("_", name)[:_LONGEST_NAME]


def model_name(name: str) -> str:
    """A logged model's name; MLflow refuses `.`, `/`, `:`, `%` and quotes in it."""
    return _MODEL_NAME.sub("_", name)


def tag_names(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text, all but MLflow's own under our prefix; those without a value left out."""
    return {
        name if name.startswith((PREFIX, "mlflow.")) else PREFIX + name: str(value)
        for name, value in tags.items()
        if value is not None
    }


def param_text(value: Any) -> str:
    """A parameter as text of at most `LONGEST_PARAM` characters.

    A longer one is cut and ends in the digest of the whole, so that two long values that differ
    only behind the cut stay apart.
    """
    plain = isinstance(value, str | int | float | bool | None)
    text = str(value) if plain else json.dumps(value, sort_keys=True, default=str)
    if len(text) <= LONGEST_PARAM:
        return text
    ending = f"... {digest_text(text)}"
    return text[: LONGEST_PARAM - len(ending)] + ending


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters by dotted names, nested mappings spread out, each as `param_text`."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[valid_name(prefix + str(name))] = param_text(value)
    return flat


def split_finite(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    """Finite metrics by valid name, and tags that keep the others readable.

    A NaN or an infinity would break MLflow's charts and comparisons for the whole metric.
    """
    floats = {valid_name(name): float(value) for name, value in values.items()}
    finite = {name: value for name, value in floats.items() if math.isfinite(value)}
    odd = {name: value for name, value in floats.items() if name not in finite}
    return finite, {f"{PREFIX}not_finite.{name}": str(value) for name, value in odd.items()}


def dataset_input(
    frame: pl.DataFrame, name: str, digest: str, context: str, source: str
) -> "DatasetInput":
    """A frame as a data set input of a run.

    Args:
        frame: n rows; only its schema and size are stored.
        name: Shown in the UI.
        digest: Our content hash.
        context: `pool`, `training` or `evaluation`.
        source: Where the rows lie, relative to the home.
    """
    from mlflow.data.polars_dataset import from_polars
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    signed = frame.with_columns(cs.unsigned_integer().cast(pl.Int64))
    with warnings.catch_warnings():
        # MLflow registers its local source twice and warns of the choice between them.
        warnings.simplefilter("ignore", UserWarning)
        config = from_polars(signed, source=source, name=name, digest=digest).to_dict()
    tags = [InputTag(key=MLFLOW_DATASET_CONTEXT, value=context)]
    return DatasetInput(dataset=Dataset(**config), tags=tags)
