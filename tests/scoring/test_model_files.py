"""What a model's folder may lack, and what is said of each lack before anything is scored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:f33a2adf6e3bc4e2e9e3b1ddc8f4a7c1e0f0d6b8a6e5c3b2a1908f7e6d5c4b3a\nsize 1044992\n"
)
Spoil = Callable[[Path], Any]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_shards(folder: Path) -> None:
    """Name three shards in an index, of which one is there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {"weight_map": {f"weight {shard}": shard for shard in shards}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    about = {"peft_type": "LORA", "base_model_name_or_path": "someone/base-7b"}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def as_gguf(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def as_encoder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(changed))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def unreadable(folder: Path) -> None:
    """A folder in a file's place cannot be read, whoever runs the tests."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


SPOILT: dict[str, tuple[Spoil, list[str]]] = {
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        ["model.safetensors is a git-lfs pointer", f"{len(POINTER)} bytes", "git lfs pull"],
    ),
    "tokenizer pointer": (
        lambda folder: (folder / "tokenizer.json").write_text(POINTER),
        ["tokenizer.json is a git-lfs pointer", "git lfs pull"],
    ),
    "half": (
        lambda folder: cut(folder / "model.safetensors"),
        ["model.safetensors", "not whole", "again"],
    ),
    "cut in its header": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\x27\0\0\0\0\0\0{"),
        ["model.safetensors", "9 bytes", "again"],
    ),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        ["model.safetensors", "0 bytes", "again"],
    ),
    "broken config": (
        lambda folder: (folder / "config.json").write_text('{\n "model_type": "llama",,\n}'),
        ["config.json", "line 2, column 24", "again"],
    ),
    "broken tokenizer": (lambda folder: cut(folder / "tokenizer.json"), ["tokenizer.json", "line"]),
    "a list for a config": (
        lambda folder: (folder / "config.json").write_text("[]"),
        ["config.json", "JSON object"],
    ),
    "missing shards": (in_shards, ["2 of its 3 weight files", "model-00002-of-00003.safetensors"]),
    "adapter": (as_adapter, ["LORA adapter of someone/base-7b", "merge", "or use"]),
    "gguf": (as_gguf, ["GGUF", "safetensors"]),
    "encoder": (as_encoder, ["encoder", "BertForMaskedLM"]),
    "no tokenizer": (without_tokenizer, ["no tokenizer", "tokenizer.json"]),
    "unreadable": (unreadable, ["tokenizer.json cannot be read"]),
}


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    """A copy of a whole model, to be spoilt."""
    return shutil.copytree(tiny.model, tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good records."""
    rows = [{"instruction": f"say the code of {name}", "output": "one"} for name in "abc"]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", SPOILT)
def test_select_and_ingest_refuse_a_folder_that_holds_no_whole_model(
    kind: str, folder: Path, data: Path, delift: Any, tmp_path: Path
) -> None:
    spoil, words = SPOILT[kind]
    spoil(folder)
    home, out = tmp_path / "home", tmp_path / "out.jsonl"
    common = ("--model", folder, "--home", home)
    (line,) = delift("select", data, *common, "--budget", 2, "--out", out).faults
    assert line.startswith(f"model: {folder}: ")
    assert [word for word in words if word not in line] == []
    assert delift("ingest", data, *common, "--version", "d-v1").faults == [line]
    assert not home.exists() and not out.exists()


def test_every_command_with_a_model_refuses_it_in_the_same_words(
    folder: Path, data: Path, delift: Any, tmp_path: Path
) -> None:
    cut(folder / "model.safetensors")
    model = ("--model", folder)
    lines = [
        delift("score", data, *model, "--home", tmp_path, "--out", tmp_path / "s.parquet").faults,
        delift("prompt", data, *model, "--target", "data-1").faults,
        delift("plan", data, *model, "--home", tmp_path).faults,
    ]
    assert lines == [lines[0]] * 3 and len(lines[0]) == 1


def test_a_gguf_file_is_named_as_such(data: Path, delift: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    (line,) = delift("select", data, "--model", path, "--budget", 1, "--home", tmp_path).faults
    assert "GGUF" in line and "safetensors" in line


def test_a_folder_that_is_mended_is_examined_again(
    folder: Path, data: Path, delift: Any, tmp_path: Path
) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    ingest = ("ingest", data, "--model", folder, "--home", tmp_path / "home", "--version", "d-v1")
    weights.write_text(POINTER)
    assert delift(*ingest).status == 2
    weights.write_bytes(whole)
    assert delift(*ingest).status == 0
    cut(weights)
    assert delift(*ingest).status == 2


def test_ingest_looks_up_no_model_of_the_hub(data: Path, delift: Any, tmp_path: Path) -> None:
    common = ("--home", tmp_path / "home", "--version", "d-v1")
    assert delift("ingest", data, "--model", "someone/some-model", *common).status == 0
    assert "no such folder" in delift("ingest", data, "--model", "./nowhere", *common).err


def test_what_fails_while_loading_is_one_line_with_the_flag_that_helps(
    folder: Path, data: Path, delift: Any, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own-kind", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    common = ("--model", folder, "--home", tmp_path / "home", "--out", tmp_path / "out.jsonl")
    (line,) = delift("select", data, *common, "--budget", 2).faults
    assert "--trust-remote-code" in line and str(folder) in line


def test_weights_that_load_in_four_bits_and_cannot_be_multiplied_are_refused_before_scoring(
    tiny: Any, data: Path, delift: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    common = ("--model", tiny.model, "--home", tmp_path / "home", "--out", tmp_path / "out.jsonl")
    (line,) = delift("select", data, *common, "--budget", 2, "--load-in", "4bit").faults
    assert line.startswith("load_in: ") and "4bit" in line and "cpu" in line
