"""The options that say how a model is run: the same on every command, refused all at once."""

import re
from pathlib import Path
from typing import Any

import pytest

from delift_pipeline.cli.options import ModelFlags

FLAGS = (
    "--revision --template --window --dtype --load-in --engine --device --device-map "
    "--tensor-parallel --gpu-memory --batch-tokens --threads --workers --trust-remote-code"
).split()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    path.write_text('{"id": "1", "instruction": "say", "input": "", "output": "two"}\n')
    return path


@pytest.mark.parametrize("command", ["select", "score", "prompt", "run", "explain"])
def test_every_command_that_runs_a_model_has_the_whole_group(delift: Any, command: str) -> None:
    said = delift(command, "--help").out
    found = re.findall(r"--[a-z-]+", said)
    assert set(FLAGS) <= set(found)


def test_what_is_given_reaches_the_options_and_the_rest_stays_the_presets() -> None:
    flags = ModelFlags(dtype="float16", tensor_parallel=2, gpu_memory=0.5, workers=2)
    found = flags.options("preset:qwen2-72b-instruct")
    assert (found.model, found.template) == ("Qwen/Qwen2-72B-Instruct", "chat")
    assert (found.dtype, found.tensor_parallel_size) == ("float16", 2)
    assert (found.engine, found.gpu_memory_utilization, found.workers) == ("vllm", 0.5, 2)


def test_flags_of_a_run_are_split_over_the_two_resources() -> None:
    flags = ModelFlags(template="chat", load_in="4bit", device_map="auto", workers=3)
    assert flags.resources("some/model") == {
        "language_model": {
            "config": {"model": "some/model", "template": "chat", "load_in": "4bit"}
        },
        "compute": {"config": {"device_map": "auto", "workers": 3}},
    }
    assert ModelFlags().resources(None) == {}


@pytest.mark.parametrize("command", ["select", "score", "prompt", "run"])
def test_every_wrong_option_is_named_at_once(
    delift: Any, command: str, file: Path, tmp_path: Path
) -> None:
    own = {
        "select": (file, "--budget", "1", "--out", tmp_path / "o.jsonl"),
        "score": (file, "--out", tmp_path / "o.parquet"),
        "prompt": (file, "--target", "1"),
        "run": ("--version", "v1"),
    }[command]
    wrong = ("--dtype", "float99", "--window", "3", "--load-in", "4bit", "--engine", "vllm")
    faults = delift(command, *own, "--model", "demo", *wrong).faults
    named = [fault.split(":")[0] for fault in faults]
    assert sorted(named) == ["--dtype", "--load-in", "--window"]


def test_an_unknown_preset_is_refused_with_those_there_are(delift: Any, file: Path) -> None:
    (fault,) = delift("prompt", file, "--target", "1", "--model", "preset:gpt-5").faults
    assert fault.startswith("--model: there is no preset 'gpt-5'") and "opt-125m" in fault


@pytest.mark.parametrize(
    "option",
    "--window --threads --batch-tokens --memory-limit --in-flight --tensor-parallel --workers "
    "--gpu-memory".split(),
)
def test_zero_is_not_the_same_as_not_given(delift: Any, file: Path, option: str) -> None:
    arguments = ("--model", "demo", "--target", "1", option, 0)
    (fault,) = delift("prompt", file, *arguments).faults
    assert fault.startswith(f"{option}: ") and "got 0" in fault
