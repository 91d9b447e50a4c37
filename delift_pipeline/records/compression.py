"""What a file's name says about its format and compression, and its bytes either way."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.errors import Fault, Refused

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"} | {
    suffix: suffix[1:] for suffix in (".csv", ".parquet")
}
CODECS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class FileKind:
    """The format, codec and bare name that a file name tells.

    Attributes:
        stem: The name without the suffixes of format and codec.
        format: `jsonl`, `json`, `csv` or `parquet`; None where the suffix says nothing.
        codec: `gzip`, `zstd` or None.
    """

    stem: str
    format: str | None
    codec: str | None


def kind_of(path: Path) -> FileKind:
    """Read the suffixes of `path`, without opening it."""
    codec = CODECS.get(path.suffix.lower())
    inner = Path(path.stem) if codec else Path(path.name)
    found = FORMATS.get(inner.suffix.lower())
    return FileKind(inner.stem if found else inner.name, found, codec)


def read_bytes(path: Path, codec: str | None) -> bytes:
    """The file's bytes, decompressed.

    Raises:
        Refused: the file cannot be read, or is not what its suffix says.
    """
    try:
        data = path.read_bytes()
        return decompress(data, codec)
    except FileNotFoundError:
        raise Refused(Fault("no such file", file=str(path))) from None
    except (OSError, EOFError, zlib.error) as error:
        what = f"cannot be read as {codec}" if codec else "cannot be read"
        raise Refused(Fault(f"{what}: {error}", file=str(path))) from error


def decompress(data: bytes, codec: str | None) -> bytes:
    """Undo `codec`; None leaves the bytes as they are."""
    if codec == "gzip":
        return gzip.decompress(data)
    if codec == "zstd":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.py_buffer(data), "zstd") as stream:
            return stream.read()
    return data


def compress(data: bytes, codec: str | None) -> bytes:
    """Apply `codec`; equal bytes in give equal bytes out."""
    if codec == "gzip":
        return gzip.compress(data, mtime=0)
    if codec == "zstd":
        import pyarrow as pa

        return pa.Codec("zstd").compress(data, asbytes=True)
    return data
