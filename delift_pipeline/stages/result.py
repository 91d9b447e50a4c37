"""What every stage returns."""

from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
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
