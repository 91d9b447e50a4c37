"""The demonstration: a synthetic world of word tasks and a tiny model that can learn in context."""

from pathlib import Path

from delift_pipeline.demo.provenance import damaged_files
from delift_pipeline.errors import DeliftError

DEMO_MODEL: Path = Path(__file__).parent / "model"
"""The folder of the shipped model: weights, configuration, tokenizer, `PROVENANCE.json`."""


def verify_demo_model(folder: Path = DEMO_MODEL) -> None:
    """Check every file of the demo model against its checksum.

    Raises:
        DeliftError: A file is missing or damaged.
    """
    if damaged := damaged_files(folder):
        raise DeliftError(
            f"the demo model is damaged ({', '.join(damaged)} in {folder}): reinstall the package"
        )


__all__ = ["DEMO_MODEL", "verify_demo_model"]
