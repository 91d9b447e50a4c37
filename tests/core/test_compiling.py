"""When compiled code on disk is used again."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import loops
print(loops.twice(2), sum(loops.twice.stats.cache_hits.values()))
"""
LOOPS = """
from delift_pipeline.core.compiling import compile_function
@compile_function
def once(x):
    return x + {step}
@compile_function
def twice(x):
    return once(once(x))
"""


def test_compiled_code_is_used_again_until_its_file_changes(tmp_path: Path) -> None:
    (tmp_path / "loops.py").write_text(LOOPS.format(step=1))
    said = [run_in(tmp_path), run_in(tmp_path)]
    (tmp_path / "loops.py").write_text(LOOPS.format(step=30))
    assert [*said, run_in(tmp_path)] == ["4 0", "4 1", "62 0"]


def run_in(folder: Path) -> str:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
