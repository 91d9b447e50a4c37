"""The demo: a synthetic world of word tasks, and a tiny model that can learn in context."""

import json
from pathlib import Path

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.scoring.fingerprint import content_digest
from delift_pipeline.scoring.model_files import DEMO_MODEL

PROVENANCE = "PROVENANCE.json"
"""The file in a demo model's folder that says how it was made, with the files' checksums."""


def verify_demo_model(folder: Path = DEMO_MODEL) -> None:
    """Check every file of the demo model against its checksum.

    Raises:
        DeliftError: a file is missing or damaged.
    """
    try:
        expected = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        damaged = [PROVENANCE]
    else:
        present = [name for name in expected if (folder / name).is_file()]
        intact = {name for name in present if content_digest(folder / name) == expected[name]}
        damaged = sorted(expected.keys() - intact)
    if damaged:
        raise DeliftError(
            f"the demo model is damaged ({', '.join(damaged)} in {folder}). Reinstall the package"
        )


__all__ = ["DEMO_MODEL", "PROVENANCE", "verify_demo_model"]
