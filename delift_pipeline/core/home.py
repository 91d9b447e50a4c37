"""Where everything lies under `DELIFT_HOME`, and where its models lie on this machine.

A version's manifest names its model so that a home can be moved: a hub id as it is, a folder inside
the home by `home:` and its place there, any other folder by `local:` and its name. `models.json`
says where the latter lie. It is the one file of a home that holds full paths.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.hashing import digest_text

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
ARM_PATTERN = re.compile(
    r"^(instruction_tuning|task_specific|continual)\.[a-z0-9_]{1,40}(-[a-z0-9_.-]{1,40})?$"
)
BASE_MODEL = "initial"
"""The name of the untrained base model in reports, where an arm's would stand."""
FINGERPRINT_PATTERN = re.compile(r"^[0-9a-f]{32}$")


def check_version(version: str) -> str:
    """The version name, which can be a folder and a partition key; else it is refused."""
    words = (
        "version name: use lower-case letters, digits, '.', '_' and '-', at most 64, starting "
        "with a letter or digit"
    )
    return _check_name(version, NAME_PATTERN, "version", words)


def check_arm(arm: str) -> str:
    """The arm name, which has the form `stage.selector[-variant]`; else it is refused."""
    words = "arm name: write stage.selector or stage.selector-variant"
    return _check_name(arm, ARM_PATTERN, "arm", words)


def check_fingerprint(fingerprint: str) -> str:
    """The fingerprint, which is 32 hexadecimal characters; else it is refused."""
    return _check_name(fingerprint, FINGERPRINT_PATTERN, "fingerprint", "fingerprint")


def _check_name(name: str, pattern: re.Pattern[str], field: str, words: str) -> str:
    if not pattern.fullmatch(name) or ".." in name:
        raise Refused(f"{name!r} is no {words}", field=field)
    return name


class _PathBelow:
    """A path below a home's root."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, home: "Home", owner: type) -> Path:
        return home.root / self.path


@dataclass(frozen=True)
class Home:
    """The home directory. Every path is made from checked names; none is stored absolute.

    A temporary home reads the scores of a `shared` home and adds to them.
    """

    root: Path
    shared: "Home | None" = None
    inbox = _PathBelow("inbox")
    """Where new versions land."""
    datasets = _PathBelow("datasets")
    """The folder of all dataset versions."""
    arms_file = _PathBelow("arms.yaml")
    """The user's own arms, overriding the package default."""
    catalog = _PathBelow("catalog.duckdb")
    """The derived DuckDB catalog."""
    mlflow = _PathBelow("mlflow")
    """MLflow's database and artifacts."""
    dagster = _PathBelow("dagster")
    """Dagster's instance folder (`DAGSTER_HOME`)."""
    leaderboard = _PathBelow("reports/leaderboard")
    """The leaderboard's folder."""

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
                raise Refused(reason, field="--home")
        return cls(root)

    def dataset(self, version: str) -> Path:
        """`datasets/<version>`."""
        return self.datasets / check_version(version)

    def plan(self, version: str) -> Path:
        """`plans/<version>`."""
        return self.root / "plans" / check_version(version)

    def scores(self, fingerprint: str) -> Path:
        """`scores/<fingerprint>`, of all versions."""
        return (self.shared or self).root / "scores" / check_fingerprint(fingerprint)

    def version_scores(self, version: str, fingerprint: str, part: str) -> Path:
        """`scores/<fingerprint>/versions/<version>/<part>`: what was scored for one version."""
        folder = self.root / "scores" / check_fingerprint(fingerprint) / "versions"
        return folder / check_version(version) / part

    def kernel(self, version: str, fingerprint: str) -> Path:
        """`kernels/<version>/<fingerprint>`."""
        return self.root / "kernels" / check_version(version) / check_fingerprint(fingerprint)

    def subset(self, version: str, arm: str) -> Path:
        """`subsets/<version>/<arm>`."""
        return self.root / "subsets" / check_version(version) / check_arm(arm)

    def adapter(self, version: str, arm: str) -> Path:
        """`adapters/<version>/<arm>`."""
        return self.root / "adapters" / check_version(version) / check_arm(arm)

    def report(self, version: str, arm: str) -> Path:
        """`reports/<version>/<arm>`."""
        return self.root / "reports" / check_version(version) / check_arm(arm)

    def base_report(self, version: str, fingerprint: str) -> Path:
        """`reports/<version>/initial-<fingerprint>`: the base model's metrics, for all arms."""
        folder = f"{BASE_MODEL}-{check_fingerprint(fingerprint)}"
        return self.root / "reports" / check_version(version) / folder

    def judgements(self, judge: str) -> Path:
        """`judgements/<judge>`: what one judge said, of all versions and arms."""
        return self.root / "judgements" / check_fingerprint(judge)

    def versions(self) -> list[str]:
        """The names of all stored dataset versions, sorted."""
        if not self.datasets.is_dir():
            return []
        names = (path.parent.name for path in self.datasets.glob("*/manifest.json"))
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))


MODELS_FILE = "models.json"
INSIDE, OUTSIDE = "home:", "local:"
DIGITS = 8


def portable_model_name(home: Home, model: str) -> str:
    """The name under which a version keeps its model; a folder's place is remembered.

    `model` is a folder, a hub id, `demo`, `preset:NAME`, or a name given here before.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return model
    folder = folder.resolve()
    if folder.is_relative_to(home.root):
        return f"{INSIDE}{folder.relative_to(home.root).as_posix()}"
    # Two folders of one name are told apart by their places.
    name = f"{OUTSIDE}{folder.name}-{digest_text(str(folder))[:DIGITS]}"
    path = home.root / MODELS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{MODELS_FILE}.lock")):
        known = outside_models(home)
        if known.get(name) != str(folder):
            write_json(path, known | {name: str(folder)})
    return name


def model_path(home: Home, name: str) -> str:
    """What to load for a model as a version names it.

    Raises:
        Refused: its folder is not where it was, or this home does not know where it lies.
    """
    if name.startswith(INSIDE):
        return str(home.root / name.removeprefix(INSIDE))
    if not name.startswith(OUTSIDE):
        return name
    place = outside_models(home).get(name)
    if place is None or not Path(place).is_dir():
        lies = f"lay at {place}, which is not there" if place else "is in no folder known here"
        reason = (
            f"{name} {lies}: give --model DIR, or write its folder into {MODELS_FILE} of the home"
        )
        raise Refused(reason, field="model")
    return place


def outside_models(home: Home) -> dict[str, str]:
    """Name -> folder, of the model folders outside a home.

    Raises:
        Refused: the file is damaged.
    """
    path = home.root / MODELS_FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): str(place) for name, place in read_json(path).items()}
    except (ValueError, AttributeError) as error:
        raise Refused(Fault(f"no JSON of names and folders: {error}", file=MODELS_FILE)) from error
