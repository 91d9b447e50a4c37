"""Find the files of an input, and read the rows of a file in the format that its content shows.

A file's name decides only if its content does not identify the format.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.core.atomic import read_json
from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.records.formats import Table, decode_leniently, text_start
from delift_pipeline.records.json_rows import JSON, JSON_LINES
from delift_pipeline.records.tabular import ARROW, CSV, PARQUET, TSV, best_header

CODECS = {".gz": "gzip", ".zst": "zstd"}
_CODEC_BY_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}

FORMATS = {one.name: one for one in (JSON_LINES, JSON, CSV, TSV, PARQUET, ARROW)}
"""All formats that can be read and written, by name. Add a new one here."""
_ENCODING_BY_MARK = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_UNSUPPORTED_CONTENT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save it as CSV",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ\x00": "compressed by xz: unpack it",
    b"SQLite format 3\x00": "an SQLite database: write its table to a CSV file",
    b"%PDF": "a PDF file: give the records as JSON Lines or CSV",
}
_LEAST_KNOWN_COLUMNS = 2
"""A first line with this many known columns is a CSV header, whatever the file's suffix."""


@dataclass(frozen=True)
class FileKind:
    """The format (a name of `FORMATS`) and codec of a file name, and the name without suffixes."""

    stem: str
    format: str | None
    codec: str | None


def formats_by_suffix() -> dict[str, str]:
    """Return the suffixes of file names with the names of their formats."""
    return {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}


def file_kind(path: Path) -> FileKind:
    """Return the kind of a file by the suffixes of its name, without opening it."""
    codec = CODECS.get(path.suffix.lower())
    inner = Path(path.stem) if codec else Path(path.name)
    format_name = formats_by_suffix().get(inner.suffix.lower())
    return FileKind(inner.stem if format_name else inner.name, format_name, codec)


def read_table(path: Path, columns: Collection[str] = ()) -> Table:
    """Read the rows of a file.

    `columns` are those that records may have. They identify the separator of a CSV file, and tell a
    record from an object that holds a list of records.

    Raises:
        InputError: The format is unknown, or the file cannot be read at all.
    """
    data, file = _read_bytes(path), str(path)
    for start, content in _UNSUPPORTED_CONTENT.items():
        if data.startswith(start):
            raise InputError(Fault(f"The file is {content}", file))
    for candidate in FORMATS.values():
        if candidate.starts and data.startswith(candidate.starts):
            return candidate.read(data, file, columns)
    data = _to_utf8(data, file)
    start, format_name = text_start(data), file_kind(path).format
    if data.startswith((b"{", b"["), start):
        return JSON.read(data, file, columns)
    if format_name and not FORMATS[format_name].starts:
        return FORMATS[format_name].read(data, file, columns)
    first_line, _ = decode_leniently(data[start:].split(b"\n", 1)[0])
    if len(set(columns).intersection(best_header(first_line, columns)[1])) >= _LEAST_KNOWN_COLUMNS:
        return CSV.read(data, file, columns)
    known = f"{', '.join(formats_by_suffix())}, each plain or {', '.join(CODECS)}"
    reason = f"The format is unknown. Use one of these suffixes: {known}."
    if format_name:
        reason = f"The content is not {format_name.title()}. Correct the suffix of the file."
    raise InputError(Fault(reason, file))


def _to_utf8(data: bytes, file: str) -> bytes:
    """Convert UTF-16 and UTF-32 to UTF-8; a byte-order mark or zero bytes identify them."""
    marks = _ENCODING_BY_MARK.items()
    encoding = next((name for mark, name in marks if data.startswith(mark)), None)
    if encoding is None and data[:2].count(0) == 1:
        encoding = "UTF-16-BE" if data[0] == 0 else "UTF-16-LE"
    if encoding is None:
        return data
    try:
        return data.decode(encoding).encode("utf-8")
    except UnicodeError as error:
        reason = f"This looks like {encoding} but is not ({error}). Save the file as UTF-8."
        raise InputError(Fault(reason, file)) from error


def _read_bytes(path: Path) -> bytes:
    """Read and decompress a file. Its first bytes, not its name, identify the codec.

    Raises:
        InputError: The file cannot be read, or its compressed data is damaged.
    """
    codec = None
    try:
        data = path.read_bytes()
        starts = _CODEC_BY_FIRST_BYTES.items()
        codec = next((name for start, name in starts if data.startswith(start)), None)
        if codec == "gzip":
            return gzip.decompress(data)
        if codec == "zstd":
            import pyarrow as pa

            with pa.CompressedInputStream(pa.py_buffer(data), "zstd") as stream:
                return stream.read()
    except FileNotFoundError:
        raise InputError(Fault("no such file", file=str(path))) from None
    except (OSError, EOFError, zlib.error) as error:
        what = f"The file cannot be read as {codec}" if codec else "The file cannot be read"
        raise InputError(Fault(f"{what}: {error}", file=str(path))) from error
    return data


def compress(data: bytes, codec: str | None) -> bytes:
    """Compress data with a codec; equal input gives equal output."""
    if codec == "gzip":
        return gzip.compress(data, mtime=0)
    if codec == "zstd":
        import pyarrow as pa

        return pa.Codec("zstd").compress(data, asbytes=True)
    return data


STDIN_PATH = Path("/dev/stdin")
STDIN_ARGUMENT = Path("-")
"""The name of standard input on a command line."""
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"
TRAIN = "train"
SPLITS = {TRAIN, "validation", "valid", "val", "dev", "eval", "test"}
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE)
_DESCRIPTION_FILES = {STATE_FILE, SPLITS_FILE, "dataset_info.json", "dataset_infos.json"}
_TEXT_SUFFIXES = ("", ".md", ".txt", ".py")
"""Suffixes of files that describe the data (README, licence) and are not data."""
_MOST_NAMED = 5


def input_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the files of several inputs in order, and notes about files that are left out.

    `-` is standard input. A folder stands for its data files in the order of their names, or for
    the dataset that `datasets` saved there.

    Raises:
        InputError: An input is a URL or a folder without data; every such fault is listed.
    """
    files, notes, faults = list[Path](), list[str](), list[Fault]()
    for path in map(Path, paths):
        if path != STDIN_ARGUMENT and path.is_dir():
            try:
                folder_files, folder_notes = _folder_files(path)
                files, notes = files + folder_files, notes + folder_notes
            except InputError as refused:
                faults += refused.faults
        elif (address := _ADDRESS.fullmatch(str(path))) and not path.exists():
            reason = "This is a URL. First download the file, then give its path."
            faults.append(Fault(reason, f"{address[1]}://{address[2]}"))
        else:
            files.append(STDIN_PATH if path == STDIN_ARGUMENT else path)
    if faults:
        raise InputError(*faults)
    return files, notes


def _folder_files(folder: Path) -> tuple[list[Path], list[str]]:
    if (folder / SPLITS_FILE).is_file():
        return _split_files(folder)
    if (folder / STATE_FILE).is_file():
        return _saved_files(folder), []
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    candidates = [p for p in visible if p.is_file() and p.name not in _DESCRIPTION_FILES]
    files = [path for path in candidates if file_kind(path).format]
    if not files:
        folders = [path.name for path in visible if path.is_dir()]
        inside = f"; its folders are: {_list_names(folders)}" if folders else ""
        known = ", ".join(formats_by_suffix())
        raise InputError(Fault(f"The folder has no data file ({known}){inside}", str(folder)))
    splits = {path: re.split(r"[-_.]", path.name.lower())[0] for path in files}
    if TRAIN in splits.values():
        files = [path for path in files if splits[path] not in SPLITS - {TRAIN}]
    others = (path for path in candidates if path not in files)
    left_out = [path.name for path in others if path.suffix.lower() not in _TEXT_SUFFIXES]
    note = f"{folder}: these files are not read: {_list_names(left_out)}"
    return files, [note] if left_out else []


def _list_names(names: list[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _split_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of the train split that `datasets` saved, or else of the only split."""
    splits = _read_json_object(folder / SPLITS_FILE).get("splits", [])
    if TRAIN in splits or len(splits) == 1:
        name = TRAIN if TRAIN in splits else splits[0]
        others = [split for split in splits if split != name]
        note = f"{folder}: the split {name} is read, not: {_list_names(others)}"
        return _saved_files(folder / name), [note] if others else []
    names = _list_names(splits)
    reason = f"The folder has several splits ({names}). Give one, such as FOLDER/SPLIT."
    raise InputError(Fault(reason, str(folder)))


def _saved_files(folder: Path) -> list[Path]:
    """Return the files of a dataset that `datasets` saved, in the order of its `state.json`."""
    state = _read_json_object(folder / STATE_FILE)
    files = [folder / shard["filename"] for shard in state.get("_data_files") or []]
    if state.get("_indices_data_files") or not files:
        reason = "It lists no plain shards. Save the dataset again with `save_to_disk`."
        raise InputError(Fault(reason, str(folder / STATE_FILE)))
    return files


def _read_json_object(path: Path) -> dict:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(Fault(f"The file cannot be read: {error}", str(path))) from error
    return value if isinstance(value, dict) else {}
