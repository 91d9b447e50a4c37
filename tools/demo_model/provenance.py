"""Where a demo model came from, written beside its files."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from delift_pipeline.demo import PROVENANCE
from delift_pipeline.scoring.fingerprint import content_digest

SCRIPT = "python -m tools.demo_model.pretrain"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def write_provenance(
    folder: Path, arguments: Mapping[str, Any], cpu_seconds: float, gate: Mapping[str, Any]
) -> Path:
    """Write `PROVENANCE.json`: script, arguments, versions, gate, and a checksum of every file."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != PROVENANCE)
    found = {
        "what": "A tiny language model pretrained on a synthetic world of word tasks.",
        "script": SCRIPT,
        "arguments": dict(arguments),
        "cpu_seconds": round(cpu_seconds),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "gate": dict(gate),
        "sha256": {path.name: content_digest(path) for path in files},
    }
    path = folder / PROVENANCE
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path
