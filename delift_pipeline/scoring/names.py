"""How a model is named in what is written."""

from pathlib import Path


def portable_name(model: str) -> str:
    """A hub id as given, a local folder by its last part: never a path of this machine.

    Which weights are meant is said by the fingerprint.
    """
    path = Path(model).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else model
