"""Where a demo model came from, written beside its files, and the check that they are intact."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROVENANCE = "PROVENANCE.json"
SCRIPT = "python -m delift_pipeline.demo.pretrain"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
        "sha256": {path.name: file_sha256(path) for path in files},
    }
    path = folder / PROVENANCE
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return path


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or differ from their checksum; empty if all is well."""
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        return [PROVENANCE]
    wrong = [
        name
        for name, expected in found.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != expected
    ]
    return sorted(wrong)
