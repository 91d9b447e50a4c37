"""Where a model's files lie: a local folder, the packaged demo model, or the hub's cache."""

import json
import re
from pathlib import Path
from typing import Any

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.scoring.model_files import check_model_file, check_model_folder
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"
"""The packaged model, for which `demo` stands: weights, configuration, tokenizer."""
LARGEST_DEFAULT_WINDOW = 2048
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
# Some repositories hold a second copy of the weights for another program.
_UNWANTED = ("consolidated*", "original/*")
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def model_folder(options: ModelOptions) -> Path:
    """The folder with the model's files, fetched from the hub where it has to be.

    Raises:
        Refused: there is no such folder or hub model, or it holds no whole model.
    """
    folder = _located(options)
    check_model_folder(folder, options.model)
    return folder


def check_local_model(options: ModelOptions) -> None:
    """Refuse a local model that cannot be loaded; a hub id is not looked up.

    Raises:
        Refused: there is no such folder, or it holds no whole model.
    """
    if not _on_hub(options.model):
        model_folder(options)


def _located(options: ModelOptions) -> Path:
    if options.model == MODEL_DEMO:
        return DEMO_MODEL
    local = Path(options.model).expanduser()
    if local.is_dir():
        return local.resolve()
    check_model_file(local, options.model)
    if not _on_hub(options.model):
        raise Refused(Fault(f"{options.model}: no such folder", field="model"))
    return _from_hub(options)


def _on_hub(model: str) -> bool:
    """Whether the name can only be that of a model on the hub."""
    here = model == MODEL_DEMO or Path(model).expanduser().exists()
    return not here and bool(_HUB_ID.fullmatch(model)) and ".." not in model


def _from_hub(options: ModelOptions) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            options.model,
            revision=options.revision,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    except Exception as error:
        # The hub client raises many kinds of error; to the user each means: the model is not here.
        reason = str(error).strip().splitlines()[0]
        raise Refused(
            Fault(
                f"{options.model}: no such folder, and the hub did not give it ({reason})",
                field="model",
            )
        ) from error
    return Path(found)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config as data."""
    return json.loads((folder / "config.json").read_text("utf-8"))


def resolve_window(options: ModelOptions, config: dict[str, Any]) -> int:
    """Most tokens in one sequence.

    Args:
        options: `window` None asks for the model's limit, at most `LARGEST_DEFAULT_WINDOW`.
        config: The model's config.

    Raises:
        Refused: the window asked for is larger than the model's limit.
    """
    text = config.get("text_config") or {}
    known = [part[name] for part in (config, text) for name in _LIMITS if part.get(name)]
    limit = int(known[0]) if known else None
    if options.window is None:
        return min(limit or LARGEST_DEFAULT_WINDOW, LARGEST_DEFAULT_WINDOW)
    if limit is not None and options.window > limit:
        raise Refused(
            Fault(
                f"{options.window:,} tokens are more than the {limit:,} the model can take",
                field="window",
            )
        )
    return options.window
