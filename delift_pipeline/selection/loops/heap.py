"""A heap of (key, place) with the greatest key on top, the lower place among equals.

Entry i has its children at 4 i + 1 to 4 i + 4: half the depth of a binary heap, and the four lie
side by side in memory.
"""

from delift_pipeline.utility.compiling import jit


@jit
def sink(heap, size, key, place):
    """Put (key, place) where the top of the heap is and let it sink."""
    hole = 0
    while True:
        first = 4 * hole + 1
        if first >= size:
            break
        child = first
        for other in range(first + 1, min(first + 4, size)):
            better = heap[other, 0] > heap[child, 0]
            tied = heap[other, 0] == heap[child, 0] and heap[other, 1] < heap[child, 1]
            child = other if better or tied else child
        if key > heap[child, 0] or (key == heap[child, 0] and place < heap[child, 1]):
            break
        heap[hole, 0], heap[hole, 1] = heap[child, 0], heap[child, 1]
        hole = child
    heap[hole, 0], heap[hole, 1] = key, place


@jit
def rise(heap, size, key, place):
    """Put (key, place) behind the `size` entries of a heap with room for it and let it rise."""
    hole = size
    while hole > 0:
        parent = (hole - 1) // 4
        if key < heap[parent, 0] or (key == heap[parent, 0] and place > heap[parent, 1]):
            break
        heap[hole, 0], heap[hole, 1] = heap[parent, 0], heap[parent, 1]
        hole = parent
    heap[hole, 0], heap[hole, 1] = key, place
