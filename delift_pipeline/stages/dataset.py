"""The stage behind `raw_dataset`: a stored version, or one taken from the inbox."""

from dataclasses import dataclass

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home
from delift_pipeline.records.inbox import find_entry, ingest_from_inbox
from delift_pipeline.records.stored import DatasetVersion, load_version
from delift_pipeline.stages.result import Result

CODE_VERSION = "1"


@dataclass(frozen=True)
class Dataset(Result):
    """A stored dataset version.

    Attributes:
        rejected: Why something else under its name in the inbox was rejected; None if nothing was.
    """

    dataset: DatasetVersion
    rejected: Refused | None


def open_dataset(home: Home, version: str) -> Dataset:
    """The stored version, ingested from the inbox where it is not stored yet.

    Something else under the name of a stored version is rejected, and the version stays as it is.

    Raises:
        Refused: it is neither stored nor in the inbox, or what is in the inbox is faulty.
        DeliftError: the stored files are damaged.
    """
    stored, rejected = version in home.versions(), None
    if not stored or find_entry(home, version) is not None:
        try:
            ingest_from_inbox(home, version)
        except Refused as refused:
            if not stored:
                raise
            rejected = refused
    dataset = load_version(home, version)
    return Dataset(home, home.dataset(version), dataset.manifest, stored, dataset, rejected)
