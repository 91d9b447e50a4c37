"""The compiled loops' own parts: the heap, and when compiled code on disk is used again."""

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from delift_pipeline.selection.loops import heap as loops

PROGRAM = """
import inner, outer
print(outer.twice(2), sum(outer.twice.stats.cache_hits.values()))
"""
OUTER = """
from delift_pipeline.utility.compiling import entry
from inner import once
@entry
def twice(x):
    return once(once(x))
"""
INNER = """
from delift_pipeline.utility.compiling import jit
@jit
def once(x):
    return x + {step}
"""


@numba.njit
def rise(heap, size, key, place):
    loops.rise(heap, size, key, place)


@numba.njit
def sink(heap, size, key, place):
    loops.sink(heap, size, key, place)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.data())
def test_a_heap_gives_the_greatest_key_and_the_lower_place_first(keys, data) -> None:
    heap = np.empty((max(1, len(keys)), 2))
    held: list[tuple[float, float]] = []
    for place, key in enumerate(keys):
        rise(heap, len(held), float(key), float(place))
        held.append((-float(key), float(place)))
        if data.draw(st.booleans()):
            lower = float(data.draw(st.integers(0, 5)))
            top = min(held)
            sink(heap, len(held), lower, top[1])
            held[held.index(top)] = (-lower, top[1])
    while held:
        assert (-heap[0, 0], heap[0, 1]) == min(held)
        held.remove(min(held))
        sink(heap, len(held), *heap[len(held)])


def test_compiled_code_is_used_again_until_a_file_beside_it_changes(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER.format(step=1))
    said = [run_in(tmp_path), run_in(tmp_path)]
    (tmp_path / "inner.py").write_text(INNER.format(step=3))
    assert [*said, run_in(tmp_path)] == ["4 0", "4 1", "8 0"]


def run_in(folder: Path) -> str:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
