"""The fingerprint: a digest of everything that scores depend on.

Two runs share scores only if their fingerprints are equal. This module does not load torch, because
the pipeline needs the fingerprint long before it needs the model.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delift_pipeline.core.hashing import digest_json
from delift_pipeline.prompts.chat import chat_template_digest
from delift_pipeline.scoring.model_files import (
    TOKENIZER_JSON,
    model_folder,
    read_config,
    resolve_window,
    weight_files,
)
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.template_choice import choose_template

SCORING_VERSION = 1
"""Raise this number when the meaning of a stored score changes."""

TOKENIZER_FILES = (*TOKENIZER_JSON, "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
# These change when a model is saved again and have no effect on its scores.
_IGNORED_CONFIG = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_known_digests: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class Fingerprint:
    """The digest (32 hexadecimal characters) and the parts that it covers."""

    digest: str
    parts: dict[str, Any]

    @property
    def template(self) -> str:
        """The name of the prompt template."""
        return self.parts["template"]["name"]


def fingerprint_of(options: ModelOptions) -> Fingerprint:
    """Return the fingerprint of scores with these options.

    It covers the bytes of weights and tokenizer, the model's config, the prompt template (and the
    model's own chat template if that is used), the length limits, the number format and the
    definition of a score. It does not cover the path, the device, the engine or the batch size:
    they change scores only by rounding.

    Raises:
        InputError: the model or the template cannot be used; the message says why.
    """
    folder = model_folder(options)
    config, choice = read_config(folder), choose_template(options, folder)
    template = choice.template
    window = resolve_window(options, config)
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    parts: dict[str, Any] = {
        "weights": {path.name: content_digest(path) for path in weight_files(folder)},
        "config": digest_json({k: v for k, v in config.items() if k not in _IGNORED_CONFIG}),
        "tokenizer": {path.name: content_digest(path) for path in tokenizer},
        "template": {
            "name": template.name,
            "version": template.version,
            "digest": template.digest,
            **({"chat": chat_template_digest(choice.chat)} if template.chat else {}),
        },
        "caps": {"window": window, "demonstration": window // 2, "target": window - window // 2},
        "dtype": options.dtype,
        **({"load_in": options.load_in} if options.load_in else {}),
        "scoring": {"version": SCORING_VERSION, "distance": "squared, mean over answer tokens"},
    }
    return Fingerprint(digest_json(parts), parts)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; each state of a file is read once per process.

    The hub's cache names large files by their SHA-256, so those are not read at all.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and _SHA256.fullmatch(real.name):
        return real.name
    state = real.stat()
    key = (str(real), state.st_size, state.st_mtime_ns)
    if key not in _known_digests:
        with real.open("rb") as handle:
            _known_digests[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _known_digests[key]
