"""What every stage returns, and what it reads from the stage before it."""

from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.errors import DeliftError, Refused
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Result:
    """What a stage wrote or found.

    Attributes:
        home: The home.
        folder: Where it is stored.
        manifest: Its manifest.
        reused: Whether it was found whole, so that nothing had to be done.
    """

    home: Home
    folder: Path
    manifest: Manifest
    reused: bool

    @property
    def path(self) -> str:
        """The folder, relative to the home."""
        return self.folder.relative_to(self.home.root).as_posix()


def required_manifest(folder: Path, reason: str, field: str | None = None) -> Manifest:
    """The manifest in a folder.

    Raises:
        Refused: there is none, and the user's `field` asked for it.
        DeliftError: there is none, and no field did.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise Refused(reason, field=field) if field else DeliftError(reason)
    return manifest
