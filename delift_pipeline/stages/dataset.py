"""The stage behind `raw_dataset`: open a stored version, or ingest one from the inbox."""

from dataclasses import dataclass

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.records.inbox import find_entry, ingest_from_inbox
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.stages.result import Result

CODE_VERSION = "1"


@dataclass(frozen=True)
class DatasetResult(Result):
    """A stored dataset version.

    Attributes:
        rejected: Why another file of its name in the inbox was refused; None if there was none.
    """

    dataset: DatasetVersion
    rejected: InputError | None


def open_dataset(home: Home, version: str) -> DatasetResult:
    """Return the stored version; ingest it from the inbox if it is not stored yet.

    If the inbox holds something else under the name of a stored version, that is refused and the
    stored version stays as it is.

    Raises:
        InputError: the version is neither stored nor in the inbox, or its file there is faulty.
        DeliftError: the stored files are damaged.
    """
    stored, rejected = version in home.versions(), None
    if not stored or find_entry(home, version) is not None:
        try:
            ingest_from_inbox(home, version)
        except InputError as refused:
            if not stored:
                raise
            rejected = refused
    dataset = load_version(home, version)
    return DatasetResult(home, home.dataset(version), dataset.manifest, stored, dataset, rejected)
