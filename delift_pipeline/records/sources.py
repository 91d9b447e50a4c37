"""Which files an input stands for: a file, standard input, or a folder of shards."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.tables import kind_of, suffixes

STANDARD_INPUT = Path("/dev/stdin")
STANDARD = Path("-")
"""Standard input, as it is named on a command line."""
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"
TRAIN = "train"
SPLITS = {TRAIN, "validation", "valid", "val", "dev", "eval", "test"}
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE)
_DESCRIPTIONS = {STATE_FILE, SPLITS_FILE, "dataset_info.json", "dataset_infos.json"}
_TEXTS = ("", ".md", ".txt", ".py")
"""Suffixes of files that speak of the data (README, licence) and are not data."""
_NAMED = 5


def input_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files of several inputs in order, and notes on what was left out of folders.

    `-` is standard input. A folder stands for its data files in the order of their names, or for
    the data set that `datasets` saved there.

    Raises:
        Refused: an input is an address or a folder without data; every such fault is given.
    """
    files: list[Path] = []
    notes: list[str] = []
    faults: list[Fault] = []
    for path in map(Path, paths):
        if path != STANDARD and path.is_dir():
            try:
                found, said = _folder_files(path)
            except Refused as refused:
                faults += refused.faults
            else:
                files += found
                notes += said
        elif (address := _ADDRESS.fullmatch(str(path))) and not path.exists():
            reason = "is an address: download the file first and give its path"
            faults.append(Fault(reason, f"{address[1]}://{address[2]}"))
        else:
            files.append(STANDARD_INPUT if path == STANDARD else path)
    if faults:
        raise Refused(*faults)
    return files, notes


def _folder_files(folder: Path) -> tuple[list[Path], list[str]]:
    if (folder / SPLITS_FILE).is_file():
        return _split_files(folder)
    if (folder / STATE_FILE).is_file():
        return _saved_files(folder), []
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in visible if path.is_file() and path.name not in _DESCRIPTIONS]
    files = [path for path in found if kind_of(path).format]
    if not files:
        folders = [path.name for path in visible if path.is_dir()]
        inside = f"; its folders are: {_listed(folders)}" if folders else ""
        known = ", ".join(suffixes())
        raise Refused(Fault(f"the folder holds no data file ({known}){inside}", str(folder)))
    splits = {path: re.split(r"[-_.]", path.name.lower())[0] for path in files}
    if TRAIN in splits.values():
        files = [path for path in files if splits[path] not in SPLITS - {TRAIN}]
    others = (path for path in found if path not in files)
    left_out = [path.name for path in others if path.suffix.lower() not in _TEXTS]
    return files, [f"{folder}: these files are not read: {_listed(left_out)}"] if left_out else []


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _split_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of the train split that `datasets` saved, else of the only split."""
    splits = _description(folder / SPLITS_FILE).get("splits", [])
    if TRAIN in splits or len(splits) == 1:
        name = TRAIN if TRAIN in splits else splits[0]
        others = [split for split in splits if split != name]
        said = [f"{folder}: the split {name} is read, not: {_listed(others)}"] if others else []
        return _saved_files(folder / name), said
    reason = f"the folder has several splits ({_listed(splits)}): give one, such as FOLDER/SPLIT"
    raise Refused(Fault(reason, str(folder)))


def _saved_files(folder: Path) -> list[Path]:
    """The shards of a data set that `datasets` saved, in the order it states."""
    state = _description(folder / STATE_FILE)
    files = [folder / shard["filename"] for shard in state.get("_data_files") or []]
    if state.get("_indices_data_files") or not files:
        reason = "states no plain shards: save the data set again with `save_to_disk`"
        raise Refused(Fault(reason, str(folder / STATE_FILE)))
    return files


def _description(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(Fault(f"cannot be read: {error}", str(path))) from error
    return found if isinstance(found, dict) else {}
