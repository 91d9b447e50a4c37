"""Where everything lies under `DELIFT_HOME`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.errors import Fault, Refused

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
ARM_PATTERN = re.compile(
    r"^(instruction_tuning|task_specific|continual)\.[a-z0-9_]{1,40}(-[a-z0-9_.-]{1,40})?$"
)
FINGERPRINT_PATTERN = re.compile(r"^[0-9a-f]{32}$")


def checked_version(version: str) -> str:
    """The version name, if it can be a folder and a partition key.

    Raises:
        Refused: the name does not match `NAME_PATTERN`.
    """
    if not NAME_PATTERN.fullmatch(version) or ".." in version:
        reason = (
            f"{version!r} is no version name: use lower-case letters, digits, '.', '_' and "
            "'-', at most 64, starting with a letter or digit"
        )
        raise Refused(Fault(reason, field="version"))
    return version


def checked_arm(arm: str) -> str:
    """The arm name, if it has the form `stage.selector[-variant]`.

    Raises:
        Refused: the name does not match `ARM_PATTERN`.
    """
    if not ARM_PATTERN.fullmatch(arm) or ".." in arm:
        reason = f"{arm!r} is no arm name: write stage.selector or stage.selector-variant"
        raise Refused(Fault(reason, field="arm"))
    return arm


def checked_fingerprint(fingerprint: str) -> str:
    """The fingerprint, if it is 32 hexadecimal characters.

    Raises:
        Refused: it is anything else.
    """
    if not FINGERPRINT_PATTERN.fullmatch(fingerprint):
        raise Refused(Fault(f"{fingerprint!r} is no fingerprint", field="fingerprint"))
    return fingerprint


@dataclass(frozen=True)
class Home:
    """The home directory. Every path is made from checked names; none is stored absolute."""

    root: Path

    @classmethod
    def at(cls, path: str | Path | None = None) -> "Home":
        """The home at `path`, else at `$DELIFT_HOME`, else at `./delift_home`.

        Raises:
            Refused: a file is there, or takes the place of a folder above it.
        """
        chosen = path or os.environ.get("DELIFT_HOME") or "delift_home"
        root = Path(os.path.realpath(Path(chosen).expanduser()))
        for place in (root, *root.parents):
            if place.is_file():
                reason = f"{place} is a file, and a home is a folder: choose another place"
                raise Refused(Fault(reason, field="--home"))
        return cls(root)

    @property
    def inbox(self) -> Path:
        """Where new versions land."""
        return self.root / "inbox"

    @property
    def datasets(self) -> Path:
        """The folder of all dataset versions."""
        return self.root / "datasets"

    @property
    def arms_file(self) -> Path:
        """The user's own arms, overriding the package default."""
        return self.root / "arms.yaml"

    @property
    def catalog(self) -> Path:
        """The derived DuckDB catalog."""
        return self.root / "catalog.duckdb"

    @property
    def mlflow(self) -> Path:
        """MLflow's database and artifacts."""
        return self.root / "mlflow"

    @property
    def dagster(self) -> Path:
        """Dagster's instance folder (`DAGSTER_HOME`)."""
        return self.root / "dagster"

    @property
    def leaderboard(self) -> Path:
        """The leaderboard's folder."""
        return self.root / "reports" / "leaderboard"

    def dataset(self, version: str) -> Path:
        """`datasets/<version>`."""
        return self.datasets / checked_version(version)

    def plan(self, version: str) -> Path:
        """`plans/<version>`."""
        return self.root / "plans" / checked_version(version)

    def scores(self, fingerprint: str) -> Path:
        """`scores/<fingerprint>`."""
        return self.root / "scores" / checked_fingerprint(fingerprint)

    def kernel(self, version: str, fingerprint: str) -> Path:
        """`kernels/<version>/<fingerprint>`."""
        return self.root / "kernels" / checked_version(version) / checked_fingerprint(fingerprint)

    def subset(self, version: str, arm: str) -> Path:
        """`subsets/<version>/<arm>`."""
        return self.root / "subsets" / checked_version(version) / checked_arm(arm)

    def adapter(self, version: str, arm: str) -> Path:
        """`adapters/<version>/<arm>`."""
        return self.root / "adapters" / checked_version(version) / checked_arm(arm)

    def report(self, version: str, arm: str) -> Path:
        """`reports/<version>/<arm>`."""
        return self.root / "reports" / checked_version(version) / checked_arm(arm)

    def base_report(self, version: str, fingerprint: str) -> Path:
        """`reports/<version>/initial-<fingerprint>`: the base model's metrics, for all arms."""
        folder = f"initial-{checked_fingerprint(fingerprint)}"
        return self.root / "reports" / checked_version(version) / folder

    def judgements(self, judge: str) -> Path:
        """`judgements/<judge>`: what one judge said, of all versions and arms."""
        return self.root / "judgements" / checked_fingerprint(judge)

    def versions(self) -> list[str]:
        """The names of all stored dataset versions, sorted."""
        if not self.datasets.is_dir():
            return []
        names = (path.parent.name for path in self.datasets.glob("*/manifest.json"))
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))
