"""Results that go where a user says: a file, a link to one, a pipe, a device, standard output.

Also values as JSON that every reader takes: no NaN, no dates or bytes in a private form.
"""

import base64
import datetime as dt
import decimal
import json
import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from delift_pipeline.core.atomic import replace_file, temporary_path
from delift_pipeline.core.errors import DeliftError, Refused, system_error, system_sentence

STANDARD_OUTPUT = Path("-")


def is_standard_output(path: Path) -> bool:
    """Whether a path means standard output: `-`, or a name of it such as `/dev/stdout`."""
    return path == STANDARD_OUTPUT or _is_open_as(path, 1)


@contextmanager
def open_output(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; what it holds then reaches `path`.

    A file is replaced whole and keeps its access rights; a link stays, and what it names is
    replaced. A pipe, a device and standard output are written to and never replaced.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
        DeliftError: the reader of a pipe is gone.
    """
    try:
        if is_standard_output(path) or _is_stream(path):
            with tempfile.TemporaryDirectory(prefix="delift-") as folder:
                temporary = Path(folder) / "result"
                yield temporary
                _send(temporary, path)
        else:
            target = Path(os.path.realpath(path))
            with replace_file(target) as temporary:
                yield temporary
                if target.exists():
                    shutil.copymode(target, temporary)
    except BrokenPipeError as error:
        if is_standard_output(path):
            raise
        raise DeliftError(f"{path}: what reads from it ended before all was written") from error
    except Exception as error:
        if (failed := system_error(error)) is None:
            raise
        raise OSError(failed.errno, failed.strerror, str(path)) from error


def write_output(path: Path, data: bytes) -> None:
    """Write a result where a user wants it; see `open_output`."""
    with open_output(path) as temporary:
        temporary.write_bytes(data)


def reason_unwritable(path: Path) -> str | None:
    """Why a result could not be written to `path`, found by trying; None where it can be."""
    if is_standard_output(path):
        return None
    mode = None
    try:
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
        if mode is not None and stat.S_ISDIR(mode):
            return f"{path} is a folder: name a file"
        if mode is not None and not os.access(path, os.W_OK):
            return f"{path} may not be written: change its access rights, or name another file"
        if mode is None or stat.S_ISREG(mode):
            target = Path(os.path.realpath(path))
            try_folder(target.parent, target.name)
    except OSError as error:
        return system_sentence(OSError(error.errno, error.strerror, str(path)))
    return None


def try_folder(folder: Path, name: str = "try") -> None:
    """Write and remove a file in a folder, or in the nearest folder above it that exists.

    The mode bits say too little: they do not count for root, nor on a read-only file system.

    Raises:
        OSError: nothing can be written there; `filename` is `folder`.
    """
    try:
        nearest = next(filter(Path.exists, (folder, *folder.parents)))
        attempt = temporary_path(nearest / name)
        try:
            attempt.write_bytes(b"delift")
        finally:
            attempt.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def refuse_unwritable_folder(folder: Path, option: str) -> None:
    """Refuse a folder that nothing can be written to, before any work.

    Raises:
        Refused: the fault names the option that the folder was given to.
    """
    try:
        try_folder(folder)
    except OSError as error:
        raise Refused(system_sentence(error), field=option) from error


def _send(source: Path, path: Path) -> None:
    if is_standard_output(path):
        sys.stdout.flush()
        with source.open("rb") as data:
            shutil.copyfileobj(data, sys.stdout.buffer)
        sys.stdout.flush()
        return
    # Without O_CREAT and O_TRUNC: what is there is used as it is.
    with source.open("rb") as data, open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
        shutil.copyfileobj(data, stream)


def _is_stream(path: Path) -> bool:
    """Whether a pipe, a socket or a device is there, or standard error in whatever form."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _is_open_as(path, 2)


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def json_value(value: Any) -> Any:
    """A value as JSON can hold it.

    NaN and infinities become null, dates and times ISO 8601, bytes base64, decimals numbers.
    What JSON does not know otherwise becomes text.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return None
        # A number of many digits, such as an id, must not be rounded.
        return int(value) if value == value.to_integral_value() else float(value)
    if hasattr(value, "tolist"):  # of NumPy
        return json_value(value.tolist())
    return str(value)


def json_text(value: Any, encoding: str = "utf-8") -> str:
    """A value as JSON on one line; characters that the encoding lacks are written as escapes."""
    text = json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(json_value(value), allow_nan=False)
    return text
