"""Bytes of files that may be compressed."""

import gzip
import zlib
from pathlib import Path

from delift_pipeline.errors import Fault, Refused

CODECS = {".gz": "gzip", ".zst": "zstd"}
_FIRST_BYTES = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def read_bytes(path: Path) -> bytes:
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
