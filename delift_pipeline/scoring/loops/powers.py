"""Powers of two of attention scores in bfloat16, with their sums."""

import numpy as np

from delift_pipeline.scoring.loops.numbers import bits_of, float_of, wide
from delift_pipeline.scoring.loops.rows import FAST
from delift_pipeline.utility.compiling import compiled

LEAST, LARGEST = np.float32(-126), np.float32(127)
SHIFTER = np.float32(1.5 * 2**23)
"""Added to a number, it leaves the nearest integer in the last bits."""
HALF_PLACE, UPPER = np.int32(0x8000), np.int32(-0x10000)
# 2^f for f from -1/2 to 1/2, to 6e-5 of its value: bfloat16 rounds by up to 4e-3.
C1, C2 = np.float32(6.93147182e-1), np.float32(2.40226506e-1)
C3, C4 = np.float32(5.55032767e-2), np.float32(9.61843736e-3)


def _power_bits(x):
    """The bits of 2^x in float32, rounded in the upper half, which is the bfloat16."""
    x = min(max(x, LEAST), LARGEST)
    shifted = x + SHIFTER
    f = x - (shifted - SHIFTER)
    power = (((C4 * f + C3) * f + C2) * f + C1) * f + np.float32(1)
    return bits_of(power) + (bits_of(shifted) << np.int32(23)) + HALF_PLACE


# Without "reassoc", which would undo the shifter.
power_bits = compiled(_power_bits, fastmath={"nsz", "contract"}, error_model="numpy")


def _powers(scores, factor, seen, sums):
    """Each score becomes 2^(factor score), or 0 where its query does not see the key.

    Scores are bfloat16's bits [rows, keys]; row i sees the first seen[i modulo its length] keys;
    `sums` [rows] are of what is left after rounding.
    """
    for i in range(len(scores)):
        row, many, total = scores[i], seen[i % len(seen)], np.float32(0)
        for j in range(many):
            bits = power_bits(wide(row[j]) * factor)
            row[j] = np.int16(bits >> np.int32(16))
            total += float_of(bits & UPPER)
        row[many:] = np.int16(0)
        sums[i] = total


powers = compiled(_powers, **FAST)
