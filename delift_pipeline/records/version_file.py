"""`version.yaml`: what a dropped folder says of the version it asks to become."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delift_pipeline.errors import Refused
from delift_pipeline.records.read import Ids
from delift_pipeline.storage.yaml_text import parse_yaml, read_text
from delift_pipeline.validation import validated

VERSION_FILE = "version.yaml"


class VersionFile(BaseModel):
    """The fields of a `version.yaml`; every one may be left out.

    Attributes:
        dataset: The data set; else the first parent's, else the folder's name up to its last `-`.
        version: The version; it has to be the folder's name.
        parents: Stored versions it follows.
        coverage, existing, model, template: As in `delift ingest`; else the first parent's.
        columns: Field -> column of all its files.
        keep: Further columns of the pool's file to keep; else those the first parent keeps.
        skip_bad: Leave faulty rows out and count them.
        ids: `ignore` drops the files' own ids.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str | None = None
    version: str | None = None
    parents: list[str] = []
    coverage: str | None = None
    existing: str | None = None
    model: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    keep: list[str] | None = None
    skip_bad: bool = False
    ids: Ids = "keep"


def read_version_file(folder: Path) -> VersionFile:
    """A folder's `version.yaml`; all defaults where it has none.

    Raises:
        Refused: it is not YAML, or a field is unknown or of the wrong kind.
    """
    path = folder / VERSION_FILE
    if not path.is_file():
        return VersionFile()
    document = parse_yaml(read_text(path, VERSION_FILE), VERSION_FILE)
    return validated(VersionFile, document.value or {}, file=VERSION_FILE)


def stated_parents(folder: Path) -> list[str]:
    """The parents that a folder's `version.yaml` names; none where it cannot be read."""
    try:
        return read_version_file(folder).parents
    except Refused:
        return []
