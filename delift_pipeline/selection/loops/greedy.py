"""Gains of many columns, and lazy greedy."""

import numpy as np

from delift_pipeline.selection.loops import either
from delift_pipeline.selection.loops.forms import BEFORE, COMPUTED, MADE, SIZE, SPENT, WAITING
from delift_pipeline.selection.loops.heap import rise, sink
from delift_pipeline.utility.compiling import entry, jit


@entry
def lifts(kernel, terms, candidates, out, start, end):
    """Lifts of candidates[start:end] into `out`."""
    for place in range(start, end):
        out[place] = either.lift(kernel, terms, candidates[place])


@entry
def checked_lifts(kernel, terms, out, start, end):
    """Lifts of columns start to end into `out`; the first one with a fault ends it, else -1."""
    for j in range(start, end):
        out[j], wrong = either.checked_lift(kernel, terms, j)
        if wrong:
            return j
    return -1


@entry
def first_fault(kernel, start, end):
    """The first of columns start to end with a value that is negative or not finite, or -1."""
    return either.fault(kernel, start, end)


@entry
def take_all(kernel, terms, picks):
    """Cover with every pick."""
    for j in picks:
        either.cover_all(kernel, terms, j)


@jit
def _admits(limits, slots, j):
    """Whether column j may be picked when `slots` picks are left; once it may not, never again."""
    if limits.costs[j] > limits.left[0]:
        return False
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        if limits.counts[d, group] >= limits.high[d, group]:
            return False
        owed = limits.wanted[d] >= slots
        if owed and limits.counts[d, group] >= limits.low[d, group]:
            return False
    return True


@jit
def _spend(limits, j):
    limits.left[0] -= limits.costs[j]
    for d in range(limits.groups.shape[0]):
        group = limits.groups[d, j]
        limits.wanted[d] -= limits.counts[d, group] < limits.low[d, group]
        limits.counts[d, group] += 1


@jit
def _drop_top(queue):
    """Take the top off the heap."""
    queue.counts[SIZE] -= 1
    last = queue.counts[SIZE]
    sink(queue.heap, last, queue.heap[last, 0], queue.heap[last, 1])


@jit
def _gather(kernel, memory, limits, queue, slots, goal):
    """Move entries whose gains are old from the top of the heap to the batch, `goal` values' worth.

    The first fresh gain or bound ends it: nothing below it may matter to this pick.
    """
    made, work = queue.counts[MADE], 0
    while work < goal and queue.counts[SIZE] > 0 and queue.counts[WAITING] < len(queue.batch):
        place = np.int64(queue.heap[0, 1])
        j = queue.candidates[place]
        admitted = _admits(limits, slots, j)
        if admitted and (memory.seen[j] == made or memory.bounded[j] == made):
            break
        _drop_top(queue)
        if admitted:
            queue.batch[queue.counts[WAITING]] = place
            queue.counts[WAITING] += 1
            work += either.size(kernel, memory, j, made)
    queue.counts[SPENT] += work


@entry
def look_at(kernel, terms, memory, bonus, limits, queue, start, end):
    """Look at entries start to end of the batch; several threads may share it."""
    for held in range(start, end):
        j = queue.candidates[queue.batch[held]]
        gain = either.look(kernel, terms, memory, j, queue.counts[MADE]) + bonus[j]
        queue.fresh[held] = gain / limits.scale[j]


@jit
def _put_back(queue):
    """Return what was looked at to the heap."""
    for held in range(queue.counts[WAITING]):
        rise(queue.heap, queue.counts[SIZE], queue.fresh[held], queue.batch[held])
        queue.counts[SIZE] += 1
    queue.counts[COMPUTED] += queue.counts[WAITING]
    queue.counts[WAITING] = 0


@entry
def lazy(kernel, terms, memory, bonus, limits, queue, picks, gains, least):
    """Lazy greedy until all is picked, or until a batch is worth being looked at by threads.

    Looking at many candidates at once looks at some in vain, and changes no pick: a pick is only
    made when its fresh gain is on top. Half of what the pick has cost so far (or the one before it
    cost) bounds that waste.

    Args:
        kernel: Dense or Sparse.
        terms: Terms; covered in place.
        memory: Memory, all gains seen at step 0.
        bonus: float64 [n].
        limits: Limits; counted in place.
        queue: Queue; a batch of it is looked at by `look_at` between two calls.
        picks: int64 [budget], filled.
        gains: float64 [budget], filled.
        least: Values from which a batch pays.

    Returns:
        How many entries of the batch are to be looked at before the next call; 0 at the end.
    """
    _put_back(queue)
    counts, heap = queue.counts, queue.heap
    while counts[MADE] < len(picks) and counts[SIZE] > 0:
        made, key, place = counts[MADE], heap[0, 0], heap[0, 1]
        j = queue.candidates[np.int64(place)]
        admitted = _admits(limits, len(picks) - made, j)
        if admitted and memory.seen[j] != made:
            goal = max(counts[SPENT], counts[BEFORE]) // 2
            if goal >= least and memory.bounded[j] != made:
                _gather(kernel, memory, limits, queue, len(picks) - made, goal)
                return counts[WAITING]
            counts[SPENT] += either.size(kernel, memory, j, made)
            counts[COMPUTED] += 1
            gain = either.look(kernel, terms, memory, j, made) + bonus[j]
            sink(heap, counts[SIZE], gain / limits.scale[j], place)
            continue
        _drop_top(queue)
        if not admitted:
            continue
        gain = key if limits.scale[j] == 1.0 else either.lift(kernel, terms, j) + bonus[j]
        if made > 0 and gain < limits.stop * gains[0]:
            break
        picks[made], gains[made] = j, gain
        counts[MADE] += 1
        counts[BEFORE], counts[SPENT] = counts[SPENT], 0
        either.take(kernel, terms, memory, j)
        _spend(limits, j)
    return 0
