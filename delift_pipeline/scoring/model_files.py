"""Find a model's files and check them before anything is loaded."""

import json
import math
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.options import MODEL_DEMO, ModelOptions

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 4.127 / 8
"""Bytes of a linear weight in nf4, quantised twice (Dettmers et al., arXiv 2305.14314)."""
INT8_BYTES = 1.0


def stored_parameters(files: Iterable[Path]) -> int:
    """Count the parameters in safetensors files; only their headers are read."""
    total = 0
    for path in files:
        with path.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        header.pop("__metadata__", None)
        total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
LFS_HEADER = b"version https://git-lfs.github.com/spec/"
TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_JSON_FILES = (CONFIG, INDEX, "generation_config.json", *TOKENIZER_JSON)
_MODEL_SUFFIXES = {".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken"}
_TOKENIZERS = ("tokeniz*", "vocab*", "*.model", "*.tiktoken", "tekken*", "spiece*")
_ENCODER_HEAD = re.compile(
    "For(MaskedLM|(Sequence|Token)Classification|QuestionAnswering|MultipleChoice)$"
)
_COPY_AGAIN = "download or copy the folder again"
_GGUF = (
    "this is a GGUF model, which DELIFT cannot read; pass the folder or hub id of the safetensors "
    "model that it was converted from"
)


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder without a complete model: safetensors weights, config and tokenizer.

    A folder is examined again only after one of its files has changed. `name` is what the user
    calls it.

    Raises:
        InputError: the folder has no complete model; the message says what it is and what to do.
    """
    try:
        files = ((p.name, p.stat() if p.exists() else p.lstat()) for p in folder.iterdir())
        state = tuple(sorted((one, stat.st_size, stat.st_mtime_ns) for one, stat in files))
        reason = _find_fault(folder, state)
    except OSError as error:
        at = Path(str(error.filename or folder)).name
        raise _refusal(name, f"{at} cannot be read ({error.strerror or error})") from error
    except _BrokenFile as error:
        raise _refusal(name, f"{error}; {_COPY_AGAIN}") from error
    if reason:
        raise _refusal(name, reason)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text("utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return sorted(folder.glob("*.safetensors"))


class _BrokenFile(Exception):
    """A file of a model is damaged or missing."""


@lru_cache(maxsize=16)
def _find_fault(folder: Path, state: tuple[Any, ...]) -> str | None:
    """Return what is wrong with a folder, or None; a new `state` makes the cache look again."""
    files = [folder / one for one, _, _ in state]
    pointers = [path for path in files if path.suffix in _MODEL_SUFFIXES and _is_pointer(path)]
    if pointers:
        size = pointers[0].stat().st_size
        more = f" (like {len(pointers) - 1} more files)" if len(pointers) > 1 else ""
        reason = f"{pointers[0].name} is a git-lfs pointer of {size} bytes{more}, not the file"
        return f"{reason}; run `git lfs pull` in the folder"
    if (folder / ADAPTER).exists():
        own = _read_json(folder / ADAPTER)
        kind, base = own.get("peft_type", "LoRA"), own.get("base_model_name_or_path", "a model")
        return (
            f"this is a {kind} adapter of {base}, not a complete model; merge it into its base "
            f"(peft: merge_and_unload, save_pretrained), or use {base}"
        )
    if not (folder / CONFIG).exists():
        has_gguf = any(path.suffix == ".gguf" for path in files)
        missing = f"this folder has no {CONFIG}, so it is not a model; pass the folder of a model"
        return _GGUF if has_gguf else missing
    read = {one: _read_json(folder / one) for one in _JSON_FILES if (folder / one).exists()}
    heads = read[CONFIG].get("architectures") or []
    if heads and all(_ENCODER_HEAD.search(str(head)) for head in heads):
        why = "which cannot score answers; use a causal language model"
        return f"this is an encoder ({heads[0]}), {why}"
    if INDEX in read:
        weight_map = read[INDEX].get("weight_map")
        names: Any = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in names):
            raise _BrokenFile(f"{INDEX} has no valid list of weight files (weight_map)")
        shards = sorted(set(names))
        if absent := [shard for shard in shards if not (folder / shard).exists()]:
            counts = f"{len(absent)} of its {len(shards)} weight files"
            raise _BrokenFile(f"{counts} are missing (first: {absent[0]})")
    weights = weight_files(folder)
    if not weights:
        return (
            "this folder has no *.safetensors weights. Other formats can run code when they are "
            "read, so they are not loaded; convert them with save_pretrained"
        )
    for path in weights:
        _check_weights(path)
    has_tokenizer = any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern))
    missing = "this folder has no tokenizer; add the tokenizer.json of this model"
    return None if has_tokenizer else missing


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        return handle.read(len(LFS_HEADER)) == LFS_HEADER


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno} ({error.msg})"
        raise _BrokenFile(f"{path.name} has invalid JSON at {at}") from error
    except UnicodeDecodeError as error:
        raise _BrokenFile(f"{path.name} is not UTF-8 text") from error
    if not isinstance(content, dict):
        raise _BrokenFile(f"{path.name} must be a JSON object")
    return content


def _check_weights(path: Path) -> None:
    """Compare a safetensors file's size with the size that follows from its header."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = handle.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = {one: at for one, at in json.loads(header).items() if one != "__metadata__"}
        expected = 8 + length + max((at["data_offsets"][1] for at in tensors.values()), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise _BrokenFile(
            f"{path.name} ({size:,} bytes) has no safetensors header, so it is cut off or has "
            "another format"
        ) from error
    if expected != size:
        reason = f"{path.name} has {size:,} bytes, but its header says {expected:,}"
        raise _BrokenFile(f"{reason}, so the file is not whole")


def _refusal(name: str, reason: str) -> InputError:
    return InputError(f"{name}: {reason}", field="model")


DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"
"""The folder of the model that comes with the package; users call it `demo`."""
LARGEST_DEFAULT_WINDOW = 2048
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
# Some repositories hold a second copy of the weights for another program.
_SECOND_COPIES = ("consolidated*", "original/*")
_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def model_folder(options: ModelOptions) -> Path:
    """Return the folder with the model's files; a hub model is downloaded if it is not here yet.

    Raises:
        InputError: there is no such folder or hub model, or the model is not complete.
    """
    local = DEMO_MODEL if options.model == MODEL_DEMO else Path(options.model).expanduser()
    if local.is_file():
        file = "this is a file; pass the folder of the model"
        raise _refusal(options.model, _GGUF if local.suffix == ".gguf" else file)
    folder = local.resolve() if local.is_dir() else _download(options)
    check_model_folder(folder, options.model)
    return folder


def check_local_model(options: ModelOptions) -> None:
    """Refuse a local model that cannot be loaded; a hub id is not looked up.

    Raises:
        InputError: there is no such folder, or its model is not complete.
    """
    if not is_hub_id(options.model):
        model_folder(options)


def is_hub_id(model: str) -> bool:
    """Whether the name is a hub id and not a local path or `demo`."""
    here = model == MODEL_DEMO or Path(model).expanduser().exists()
    return not here and bool(_HUB_ID.fullmatch(model)) and ".." not in model


def _download(options: ModelOptions) -> Path:
    from huggingface_hub import snapshot_download

    if not is_hub_id(options.model):
        raise _refusal(options.model, "no such folder exists; check the path, or pass a hub id")
    patterns = {"allow_patterns": list(_MODEL_FILES), "ignore_patterns": list(_SECOND_COPIES)}
    try:
        return Path(snapshot_download(options.model, revision=options.revision, **patterns))
    except Exception as error:
        # The hub client raises many kinds of error; to the user each means: the model is not here.
        reason = str(error).strip().splitlines()[0]
        why = (
            f"no such folder exists, and the hub has no such model or cannot be reached ({reason})"
        )
        raise _refusal(options.model, why) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's `config.json`."""
    return json.loads((folder / "config.json").read_text("utf-8"))


def resolve_window(options: ModelOptions, config: dict[str, Any]) -> int:
    """Return the window: by default the model's limit, at most `LARGEST_DEFAULT_WINDOW`.

    Raises:
        InputError: the options' window is larger than the model's limit.
    """
    text = config.get("text_config") or {}
    known = [part[name] for part in (config, text) for name in _LIMITS if part.get(name)]
    limit = int(known[0]) if known else None
    if options.window is None:
        return min(limit or LARGEST_DEFAULT_WINDOW, LARGEST_DEFAULT_WINDOW)
    if limit is not None and options.window > limit:
        raise InputError(
            f"{options.window:,} tokens are more than the {limit:,} that the model supports; use a "
            "smaller window",
            field="window",
        )
    return options.window
