"""The files an input stands for, and a file's rows in the format that its content shows.

A file's name decides only where its content leaves the format open.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.records.formats import Table, lenient_text, text_start
from delift_pipeline.records.json_rows import JSON, JSON_LINES
from delift_pipeline.records.tabular import ARROW, CSV, PARQUET, TSV, best_header

CODECS = {".gz": "gzip", ".zst": "zstd"}
_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

FORMATS = {one.name: one for one in (JSON_LINES, JSON, CSV, TSV, PARQUET, ARROW)}
"""Every format that can be read and written, by name. A new one is added here."""
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_OTHER_CONTENT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save it as CSV",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it",
    b"SQLite format 3\x00": "an SQLite database: write its table to a CSV file",
    b"%PDF": "a PDF file: give the records as JSON Lines or CSV",
}
_SURE = 2
"""How many known columns make the first line of a file without a known suffix a CSV header."""


@dataclass(frozen=True)
class FileKind:
    """The format (of `FORMATS`) and codec that a file name tells, and the name without them."""

    stem: str
    format: str | None
    codec: str | None


def suffixes() -> dict[str, str]:
    """The names of the formats by the suffixes of file names."""
    return {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}


def kind_of(path: Path) -> FileKind:
    """Read the suffixes of `path`, without opening it."""
    codec = CODECS.get(path.suffix.lower())
    inner = Path(path.stem) if codec else Path(path.name)
    found = suffixes().get(inner.suffix.lower())
    return FileKind(inner.stem if found else inner.name, found, codec)


def read_table(path: Path, columns: Collection[str] = ()) -> Table:
    """Read the rows of a file.

    `columns` are those that records may have; they tell CSV separators apart, and a record from an
    object around a list of records.

    Raises:
        Refused: the format is not known, or the file cannot be read at all.
    """
    data, file = _read_bytes(path), str(path)
    for start, content in _OTHER_CONTENT.items():
        if data.startswith(start):
            raise Refused(Fault(f"the file is {content}", file))
    for form in FORMATS.values():
        if form.starts and data.startswith(form.starts):
            return form.read(data, file, columns)
    data = _as_utf8(data, file)
    start, named = text_start(data), kind_of(path).format
    if data.startswith((b"{", b"["), start):
        return JSON.read(data, file, columns)
    if named and not FORMATS[named].starts:
        return FORMATS[named].read(data, file, columns)
    first, _ = lenient_text(data[start:].split(b"\n", 1)[0])
    if len(set(columns).intersection(best_header(first, columns)[1])) >= _SURE:
        return CSV.read(data, file, columns)
    known = f"{', '.join(suffixes())}, each plain or {', '.join(CODECS)}"
    reason = f"unknown format: name it {known}"
    if named:
        reason = f"is not {named.title()}: its first bytes are those of another format"
    raise Refused(Fault(reason, file))


def _as_utf8(data: bytes, file: str) -> bytes:
    """The bytes in UTF-8; a byte-order mark or zero bytes tell UTF-16 and UTF-32."""
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), None)
    if encoding is None and data[:2].count(0) == 1:
        encoding = "UTF-16-BE" if data[0] == 0 else "UTF-16-LE"
    if encoding is None:
        return data
    try:
        return data.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        reason = f"looks like {encoding} but cannot be decoded ({error}): save it as UTF-8"
        raise Refused(Fault(reason, file)) from error


def _read_bytes(path: Path) -> bytes:
    """The file's bytes, decompressed; its first bytes tell the codec, whatever its name.

    Raises:
        Refused: the file cannot be read, or its compressed data is damaged.
    """
    codec = None
    try:
        data = path.read_bytes()
        codec = next((one for start, one in _FIRST_BYTES.items() if data.startswith(start)), None)
        if codec == "gzip":
            return gzip.decompress(data)
        if codec == "zstd":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.py_buffer(data), "zstd") as stream:
                return stream.read()
    except FileNotFoundError:
        raise Refused(Fault("no such file", file=str(path))) from None
    except (OSError, EOFError, zlib.error) as error:
        what = f"cannot be read as {codec}" if codec else "cannot be read"
        raise Refused(Fault(f"{what}: {error}", file=str(path))) from error
    return data


def compress(data: bytes, codec: str | None) -> bytes:
    """Apply `codec`; equal bytes in give equal bytes out."""
    if codec == "gzip":
        return gzip.compress(data, mtime=0)
    if codec == "zstd":
        import pyarrow as pa

        return pa.Codec("zstd").compress(data, asbytes=True)
    return data


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
    files, notes, faults = list[Path](), list[str](), list[Fault]()
    for path in map(Path, paths):
        if path != STANDARD and path.is_dir():
            try:
                found, said = _folder_files(path)
                files, notes = files + found, notes + said
            except Refused as refused:
                faults += refused.faults
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
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise Refused(Fault(f"cannot be read: {error}", str(path))) from error
    return found if isinstance(found, dict) else {}
