"""Numbers as arrays hold them and as loops reckon with them; numba chooses by type."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

HALF_UNIT = 0x7FFF
"""Just less than half of bfloat16's last place in float32's bits."""


def _float_of(context: Any, bits: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


def _bits_of(context: Any, number: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), code


float_of: Any = intrinsic(_float_of)
"""The float32 of 32 bits."""
bits_of: Any = intrinsic(_bits_of)
"""The 32 bits of a float32."""


def wide(number) -> Any:
    """A stored number in float32."""
    raise NotImplementedError


def stored(number, like) -> Any:
    """A float32 as an array of numbers like `like` stores it: rounded to nearest, ties to even."""
    raise NotImplementedError


@overload(wide)
def _wide(number):
    if number == types.float32:
        return lambda number: number
    return lambda number: float_of(np.int32(number) << np.int32(16))


@overload(stored)
def _stored(number, like):
    if like == types.float32:
        return lambda number, like: number

    def rounded(number, like):
        bits = bits_of(number)
        odd = (bits >> np.int32(16)) & np.int32(1)
        return np.int16((bits + np.int32(HALF_UNIT) + odd) >> np.int32(16))

    return rounded
