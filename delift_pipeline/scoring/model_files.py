"""Examine a model's folder before anything is loaded from it; no weights are read."""

import json
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from delift_pipeline.errors import Fault, Refused

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
LFS_HEADER = b"version https://git-lfs.github.com/spec/"
_JSON_FILES = (
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_READ = {".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken"}
_TOKENIZERS = ("tokeniz*", "vocab*", "*.model", "*.tiktoken", "tekken*", "spiece*")
_ENCODER_HEADS = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
_AGAIN = "download or copy the folder again"


def check_model_file(path: Path, name: str) -> None:
    """Refuse a model that is named by a file and not by its folder.

    Raises:
        Refused: always, where `path` is a file.
    """
    if path.is_file():
        raise _refused(
            name,
            _gguf() if path.suffix == ".gguf" else "this is a file; name the folder of the model",
        )


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder that holds no whole model of safetensors weights with a tokenizer.

    What was examined once is not examined again until a file of the folder changes.

    Args:
        folder: The folder.
        name: What the user calls it.

    Raises:
        Refused: the sentence says what the folder is and what to do.
    """
    try:
        state = tuple(sorted(_state(path) for path in folder.iterdir()))
        _check(folder, name, state)
    except OSError as error:
        at = Path(str(error.filename or folder)).name
        raise _refused(name, f"{at} cannot be read ({error.strerror or error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name."""
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text("utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return sorted(folder.glob("*.safetensors"))


def _state(path: Path) -> tuple[str, int, int]:
    found = path.stat() if path.exists() else path.lstat()
    return path.name, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _check(folder: Path, name: str, state: tuple[Any, ...]) -> None:
    """Run all checks; `state` makes the cache forget a folder that has changed."""
    files = [folder / one for one, _, _ in state]
    _check_pointers([path for path in files if path.suffix in _READ and path.is_file()], name)
    if (folder / ADAPTER).exists():
        raise _refused(name, _adapter(_read_json(folder / ADAPTER, name)))
    if not (folder / CONFIG).exists():
        named_gguf = any(path.suffix == ".gguf" for path in files)
        raise _refused(name, _gguf() if named_gguf else f"no {CONFIG}, so this holds no model")
    read = {one: _read_json(folder / one, name) for one in _JSON_FILES if (folder / one).exists()}
    _check_kind(read[CONFIG], name)
    if INDEX in read:
        _check_index(read[INDEX], folder, name)
    weights = weight_files(folder)
    if not weights:
        raise _refused(
            name,
            "no *.safetensors weights; other formats can run code when they are read and are "
            "not loaded (convert them with save_pretrained)",
        )
    for path in weights:
        _check_weights(path, name)
    if not any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern)):
        raise _refused(name, "no tokenizer; add the tokenizer.json of this model")


def _check_pointers(files: Sequence[Path], name: str) -> None:
    pointers = [path for path in files if _starts_with(path, LFS_HEADER)]
    if pointers:
        size = pointers[0].stat().st_size
        more = f" (as are {len(pointers) - 1} more files)" if len(pointers) > 1 else ""
        reason = f"{pointers[0].name} is a git-lfs pointer of {size} bytes{more}, not the file"
        raise _refused(name, f"{reason}; run `git lfs pull` in the folder")


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(start)) == start


def _adapter(config: dict[str, Any]) -> str:
    kind, base = config.get("peft_type", "LoRA"), config.get("base_model_name_or_path", "a model")
    return (
        f"this is a {kind} adapter of {base}, not a whole model; merge it into its base (peft: "
        f"merge_and_unload, save_pretrained), or name {base}"
    )


def _gguf() -> str:
    return (
        "this is a GGUF model, which is not read; name the folder or hub id of the safetensors "
        "model that it was made of"
    )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        reason = f"{path.name} is broken JSON at {at} ({error.msg}); {_AGAIN}"
        raise _refused(name, reason) from error
    except UnicodeDecodeError as error:
        raise _refused(name, f"{path.name} is not UTF-8 text; {_AGAIN}") from error
    if not isinstance(found, dict):
        raise _refused(name, f"{path.name} holds no JSON object; {_AGAIN}")
    return found


def _check_kind(config: dict[str, Any], name: str) -> None:
    heads = config.get("architectures") or []
    if heads and all(str(head).endswith(_ENCODER_HEADS) for head in heads):
        reason = f"this is an encoder ({heads[0]}) and cannot score answers; name a causal model"
        raise _refused(name, reason)


def _check_index(index: dict[str, Any], folder: Path, name: str) -> None:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise _refused(name, f"{INDEX} names no weight files (weight_map); {_AGAIN}")
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not (folder / shard).exists()]
    if absent:
        reason = f"{len(absent)} of its {len(shards)} weight files are missing (first: {absent[0]})"
        raise _refused(name, f"{reason}; {_AGAIN}")


def _check_weights(path: Path, name: str) -> None:
    """Compare a safetensors file's size with what its header says."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = handle.read(length) if 0 < length <= size - 8 else b""
    try:
        tensors = {one: at for one, at in json.loads(header).items() if one != "__metadata__"}
        whole = 8 + length + max((at["data_offsets"][1] for at in tensors.values()), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        reason = f"{path.name} ({size:,} bytes) has no safetensors header: it is cut off or"
        raise _refused(name, f"{reason} another kind of file; {_AGAIN}") from error
    if whole != size:
        reason = f"{path.name} has {size:,} bytes where its header says {whole:,}"
        raise _refused(name, f"{reason}: the file is not whole; {_AGAIN}")


def _refused(name: str, reason: str) -> Refused:
    return Refused(Fault(f"{name}: {reason}", field="model"))
