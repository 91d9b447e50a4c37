"""Values as JSON that every reader takes: no NaN, no dates or bytes in a private form."""

import base64
import datetime as dt
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    NaN and infinities become null, dates and times ISO 8601, bytes base64, decimals numbers.
    What JSON does not know otherwise becomes text.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
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
        return plain(value.tolist())
    return str(value)


def json_text(value: Any, encoding: str = "utf-8") -> str:
    """A value as JSON on one line; characters that the encoding lacks are written as escapes."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(plain(value), allow_nan=False)
    return text
