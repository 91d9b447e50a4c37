"""Compiled inner loops of coverage objectives; imported when a kernel is large enough to pay.

A dense kernel is read in blocks of rows, and every sum over the same rows runs in the same order
wherever it is computed, so that a gain computed again is never greater, to the last bit, and every
optimizer sees the same gains.

Once a target is covered better than a column covers it, the column never lifts it again. Lazy
greedy therefore keeps, for each column that it looked at, the rows that are left and their values,
as soon as they are few. Their sum bounds the gain from above by the little that rounding may
matter, and only a column whose bound is the greatest of all is read whole.
"""
