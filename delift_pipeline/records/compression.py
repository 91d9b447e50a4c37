"""What a file's name says about its format and compression, and its bytes decompressed."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from delift_pipeline.errors import Fault, Refused

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"} | {
    suffix: suffix[1:] for suffix in (".csv", ".tsv", ".parquet", ".arrow")
}
CODECS = {".gz": "gzip", ".zst": "zstd"}
_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class FileKind:
    """The format, codec and bare name that a file name tells.

    Attributes:
        stem: The name without the suffixes of format and codec.
        format: A value of `FORMATS`; None where the suffix says nothing.
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


def read_bytes(path: Path) -> bytes:
    """The file's bytes, decompressed; its first bytes tell the codec, whatever its name.

    Raises:
        Refused: the file cannot be read, or its compressed data is damaged.
    """
    codec = None
    try:
        data = path.read_bytes()
        codec = next((one for start, one in _FIRST_BYTES.items() if data.startswith(start)), None)
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
