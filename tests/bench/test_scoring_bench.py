"""The scoring benchmark's own arithmetic and keys, on a model of no size."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from delift_pipeline.bench import scoring
from delift_pipeline.cli.main import run
from delift_pipeline.scoring.engine import Job

KEYS = {
    "pairs_per_second",
    "ratio_vs_naive_full",
    "ratio_vs_naive_answer",
    "max_abs_logprob_difference",
    "matmul_peak_gflops",
    "useful_gflops",
    "fraction_of_peak",
    "peak_rss_mib",
    "bf16",
}
TINY = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(scoring.SHAPES, "tiny", TINY)
    monkeypatch.setattr(scoring, "peak_memory", lambda *asked: 1.0)


def test_the_benchmark_gives_every_key_as_one_json_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "scoring", "--shape", "tiny", "--repeats", "1", "--targets", "3", "--json"]
    assert run(command) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert ("vLLM is not measured" in said.err) == (find_spec("vllm") is None)
    assert set(found) == {"short", "realistic"}
    for row in found.values():
        assert set(row) == KEYS
        assert row["max_abs_logprob_difference"] <= 1e-5
        assert 0 < row["bf16"]["max_abs_distance_difference"] <= 0.03
        speed = row["pairs_per_second"]
        # The heads of this model are too narrow for vLLM, so that it has no row anywhere.
        assert set(speed) == {"naive_full", "naive_answer", "ours", "ours_bf16"}
        assert row["ratio_vs_naive_full"] == pytest.approx(speed["ours"] / speed["naive_full"])


def test_an_unknown_shape_and_an_unknown_length_are_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", "scoring", "--shape", "huge", "--length", "endless"]) == 2
    said = capsys.readouterr().err
    assert "'huge'" in said and "'endless'" in said


def test_other_lengths_and_naive_batches_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "scoring", "--shape", "demo", "--length", "tiny", "--naive-batch", "32"]
    assert run([*command, "--repeats", "1", "--targets", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"tiny"}
    assert found["tiny"]["max_abs_logprob_difference"] <= 1e-5


def test_the_useful_operations_of_one_pair_by_hand() -> None:
    model = scoring.random_model("tiny", torch.float32, torch.device("cpu"))
    records = scoring.random_records(1, 4, 1, 90)
    job = Job(records.prefix(), np.asarray([0]))
    n, p = int(records.target_starts[1]) - 1, 1
    assert int(records.answer_lengths[0]) == 1
    heavy, keys = 2 * (2 * 16 * 16 + 3 * 16 * 24), 2 * 2 * 16 * 16
    expected = 2 * keys * (n + p) + heavy * (n + p + 1) + 2 * 16 * 90
    expected += 4 * 16 * (n * p + n * (n + 1) / 2 + 1) + 4 * 16 * (p + n)
    found = scoring.useful_operations(model.config, records, [job])
    assert found == pytest.approx(expected)
