"""Writing results to what a user names: a file, a link, a pipe, a device or standard output.

Also JSON that every reader accepts: without NaN, and with dates and bytes in standard forms.
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
from delift_pipeline.core.errors import DeliftError, InputError, system_error, system_sentence

STANDARD_OUTPUT = Path("-")


def is_standard_output(path: Path) -> bool:
    """Whether a path means standard output: `-`, or another name such as `/dev/stdout`."""
    return path == STANDARD_OUTPUT or _is_open_as(path, 1)


@contextmanager
def open_output(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; its content is then written to `path`.

    A file is replaced as a whole and keeps its access rights. A link stays, and the file that it
    names is replaced. Pipes, devices and standard output are written to and never replaced.

    Raises:
        OSError: `path` cannot be written; `filename` is `path`.
        DeliftError: the program that reads from a pipe has ended.
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
        reason = f"{path}: the program that reads from it ended before everything was written"
        raise DeliftError(reason) from error
    except Exception as error:
        if (failed := system_error(error)) is None:
            raise
        raise OSError(failed.errno, failed.strerror, str(path)) from error


def write_output(path: Path, data: bytes) -> None:
    """Write a result where a user wants it; see `open_output`."""
    with open_output(path) as temporary:
        temporary.write_bytes(data)


def reason_unwritable(path: Path) -> str | None:
    """Try to write to `path`; return why it is not possible, or None if it is."""
    if is_standard_output(path):
        return None
    mode = None
    try:
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
        if mode is not None and stat.S_ISDIR(mode):
            return f"{path} is a folder. Name a file."
        if mode is not None and not os.access(path, os.W_OK):
            return f"{path} cannot be written. Change its access rights, or name another file."
        if mode is None or stat.S_ISREG(mode):
            target = Path(os.path.realpath(path))
            try_folder(target.parent, target.name)
    except OSError as error:
        return system_sentence(OSError(error.errno, error.strerror, str(path)))
    return None


def try_folder(folder: Path, name: str = "try") -> None:
    """Write and remove a file in a folder, or in the nearest folder above it that exists.

    Mode bits are not enough: root ignores them, and so does a read-only file system.

    Raises:
        OSError: the folder cannot be written to; `filename` is `folder`.
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
    """Refuse a folder that cannot be written to, before any work.

    Raises:
        InputError: the fault's field is `option`.
    """
    try:
        try_folder(folder)
    except OSError as error:
        raise InputError(system_sentence(error), field=option) from error


def _send(source: Path, path: Path) -> None:
    if is_standard_output(path):
        sys.stdout.flush()
        with source.open("rb") as data:
            shutil.copyfileobj(data, sys.stdout.buffer)
        sys.stdout.flush()
        return
    # Without O_CREAT and O_TRUNC, because the pipe or device is there and must not be truncated.
    with source.open("rb") as data, open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as stream:
        shutil.copyfileobj(data, stream)


def _is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a socket or a device, or any form of standard error."""
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
    """Convert a value to types that JSON has.

    NaN and infinities become null, dates and times ISO 8601, bytes base64, and decimals numbers.
    Values of all other types become text.
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
        # An integer with many digits, such as an id, must not be rounded.
        return int(value) if value == value.to_integral_value() else float(value)
    if hasattr(value, "tolist"):  # a NumPy array or scalar
        return json_value(value.tolist())
    return str(value)


def json_text(value: Any, encoding: str = "utf-8") -> str:
    """Return a value as one line of JSON. Characters that `encoding` lacks become escapes."""
    text = json.dumps(json_value(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(json_value(value), allow_nan=False)
    return text
