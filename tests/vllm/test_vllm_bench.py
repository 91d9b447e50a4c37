"""`delift bench scoring` measures vLLM beside the other ways. Run by `make test-vllm`."""

from importlib.util import find_spec

import pytest

from delift_pipeline.bench.scoring import BenchSizes, benchmark_scoring

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]


def test_where_vllm_is_installed_the_benchmark_has_a_row_for_it() -> None:
    sizes = BenchSizes(repeats=1, targets=2, demonstrations=1)
    row = benchmark_scoring("llama-10m", lengths=["tiny"], sizes=sizes, memory=False)["tiny"]
    speed = row["pairs_per_second"]
    assert speed["vllm"] > 0
    assert row["ratio_vs_vllm"] == pytest.approx(speed["ours"] / speed["vllm"])
