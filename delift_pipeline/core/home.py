"""The paths inside a home, and where its models are on this machine.

A version's manifest names its model without a full path, so a home can be moved: a hub id as it is,
a folder inside the home as `home:PATH`, and any other folder as `local:NAME`. `models.json` maps
the latter to folders. It is the only file of a home that holds full paths.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.hashing import digest_text

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
ARM_PATTERN = re.compile(
    r"^(instruction_tuning|task_specific|continual)\.[a-z0-9_]{1,40}(-[a-z0-9_.-]{1,40})?$"
)
BASE_MODEL = "initial"
"""The name of the untrained base model in reports, in place of an arm's name."""
FINGERPRINT_PATTERN = re.compile(r"^[0-9a-f]{32}$")


def check_version(version: str) -> str:
    """Return the version name if it can be a folder and a partition key; else refuse it."""
    words = (
        "version name: use lower-case letters, digits, '.', '_' and '-', at most 64, starting "
        "with a letter or digit"
    )
    return _check_name(version, NAME_PATTERN, "version", words)


def check_arm(arm: str) -> str:
    """Return the arm name if it has the form `stage.selector[-variant]`; else refuse it."""
    words = "arm name: write stage.selector or stage.selector-variant"
    return _check_name(arm, ARM_PATTERN, "arm", words)


def check_fingerprint(fingerprint: str) -> str:
    """Return the fingerprint if it is 32 hexadecimal characters; else refuse it."""
    words = "fingerprint: give 32 hexadecimal characters"
    return _check_name(fingerprint, FINGERPRINT_PATTERN, "fingerprint", words)


def _check_name(name: str, pattern: re.Pattern[str], field: str, words: str) -> str:
    if not pattern.fullmatch(name) or ".." in name:
        raise InputError(f"{name!r} is not a valid {words}", field=field)
    return name


class _PathBelow:
    """A path below a home's root."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, home: "Home", owner: type) -> Path:
        return home.root / self.path


@dataclass(frozen=True)
class Home:
    """The home directory. Every path is built from checked names, and none is stored absolute.

    A temporary home reads the scores of a `shared` home and adds to them.
    """

    root: Path
    shared: "Home | None" = None
    inbox = _PathBelow("inbox")
    """The folder where new versions arrive."""
    datasets = _PathBelow("datasets")
    """The folder of all dataset versions."""
    arms_file = _PathBelow("arms.yaml")
    """The user's own arms, which override the package's."""
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
        """Return the home at `path`, else at `$DELIFT_HOME`, else at `./delift_home`.

        Raises:
            InputError: the path, or a part of it, is a file.
        """
        chosen = path or os.environ.get("DELIFT_HOME") or "delift_home"
        root = Path(os.path.realpath(Path(chosen).expanduser()))
        for place in (root, *root.parents):
            if place.is_file():
                reason = f"{place} is a file, but a home is a folder. Choose another place."
                raise InputError(reason, field="--home")
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
        """`scores/<fingerprint>/versions/<version>/<part>`: the scores that one version needs."""
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
        """`judgements/<judge>`: the scores of one judge, for all versions and arms."""
        return self.root / "judgements" / check_fingerprint(judge)

    def versions(self) -> list[str]:
        """Return the names of all stored dataset versions, sorted."""
        if not self.datasets.is_dir():
            return []
        names = (path.parent.name for path in self.datasets.glob("*/manifest.json"))
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))


MODELS_FILE = "models.json"
INSIDE, OUTSIDE = "home:", "local:"
DIGITS = 8


def portable_model_name(home: Home, model: str) -> str:
    """Return the name of a model for a manifest; it holds no full path.

    `model` is a folder, a hub id, `demo`, `preset:NAME`, or a name that this function returned. The
    path of a folder outside the home is written to `models.json`.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return model
    folder = folder.resolve()
    if folder.is_relative_to(home.root):
        return f"{INSIDE}{folder.relative_to(home.root).as_posix()}"
    # The digest of the path distinguishes two folders with the same name.
    name = f"{OUTSIDE}{folder.name}-{digest_text(str(folder))[:DIGITS]}"
    path = home.root / MODELS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{MODELS_FILE}.lock")):
        known = outside_models(home)
        if known.get(name) != str(folder):
            write_json(path, known | {name: str(folder)})
    return name


def model_path(home: Home, name: str) -> str:
    """Return the folder or the id to load for a model, from its name in a manifest.

    Raises:
        InputError: the folder is gone, or `models.json` does not list it.
    """
    if name.startswith(INSIDE):
        return str(home.root / name.removeprefix(INSIDE))
    if not name.startswith(OUTSIDE):
        return name
    place = outside_models(home).get(name)
    if place is None or not Path(place).is_dir():
        problem = f"was in {place}, which is gone" if place else f"is not listed in {MODELS_FILE}"
        reason = (
            f"the model {name} {problem}. Pass --model DIR, or write its folder into {MODELS_FILE} "
            "of the home."
        )
        raise InputError(reason, field="model")
    return place


def outside_models(home: Home) -> dict[str, str]:
    """Return name -> folder of the models outside a home, from `models.json`.

    Raises:
        InputError: the file is damaged.
    """
    path = home.root / MODELS_FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): str(place) for name, place in read_json(path).items()}
    except (ValueError, AttributeError) as error:
        reason = f"the file is not a JSON object of names and folders: {error}. Correct it."
        raise InputError(Fault(reason, file=MODELS_FILE)) from error
