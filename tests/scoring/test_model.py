"""Which models can be loaded, why others are refused, and what the fingerprint covers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.engines import NaiveEngine, engine_for
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model import LoadedModel, load_encoder, load_model
from delift_pipeline.scoring.options import ModelOptions

MakeModel = Callable[..., Path]
PAIR = pl.DataFrame(
    [
        {"record_id": "a", "instruction": "one day", "input": "", "output": "the dog was happy"},
        {
            "record_id": "b",
            "instruction": "her dog",
            "input": "saw a ball",
            "output": "play with it",
        },
    ]
)


def digest(folder: Path, **options: object) -> str:
    asked = ModelOptions.model_validate({"model": str(folder), **options})
    return fingerprint_of(asked).digest


@pytest.fixture
def folder(llama: LoadedModel, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to be spoilt."""
    return shutil.copytree(llama.folder, tmp_path / "model")


def test_the_fingerprint_needs_no_torch(llama: LoadedModel) -> None:
    code = (
        "import sys; from delift_pipeline.scoring.fingerprint import fingerprint_of as f; "
        "from delift_pipeline.scoring.options import ModelOptions as O; "
        "print(f(O(model=sys.argv[1])).digest); assert 'torch' not in sys.modules; "
        "assert 'transformers' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(llama.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == llama.fingerprint.digest


def test_the_fingerprint_ignores_path_batch_size_device_engine_and_threads(
    llama: LoadedModel, folder: Path
) -> None:
    assert digest(folder) == llama.fingerprint.digest
    assert digest(folder, batch_tokens=17, device="cpu", threads=1, engine="naive") == digest(
        folder
    )


def test_the_fingerprint_follows_template_caps_and_number_format(folder: Path) -> None:
    asked = [
        {},
        {"template": "paper"},
        {"template": "world"},
        {"window": 128},
        {"dtype": "bfloat16"},
    ]
    assert len({digest(folder, **options) for options in asked}) == len(asked)


def test_the_fingerprint_follows_weights_tokenizer_and_config(folder: Path) -> None:
    digests = [digest(folder)]
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    digests.append(digest(folder))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"dog"', '"hound"'))
    digests.append(digest(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    digests.append(digest(folder))
    assert len(set(digests)) == 4
    saved_again = {**config, "rms_norm_eps": 1e-3, "transformers_version": "9"}
    (folder / "config.json").write_text(json.dumps(saved_again))
    assert digest(folder) == digests[-1]


def test_the_window_defaults_to_the_models_own_and_cannot_exceed_it(llama: LoadedModel) -> None:
    assert llama.encoder.window == 256
    assert load_encoder(ModelOptions(model=str(llama.folder), window=64)).window == 64
    with pytest.raises(InputError, match="more than the 256"):
        digest(llama.folder, window=300)


def refusal(folder: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as refused:
        load_model(ModelOptions.model_validate({"model": str(folder), **options}))
    assert len(refused.value.faults) == 1
    return str(refused.value)


def test_each_way_a_model_cannot_be_used_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal("../nowhere/at/all")
    assert "no template" in refusal(folder, template="nonesuch")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no *.safetensors" in refusal(folder)


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("eos_token")
    path.write_text(json.dumps(settings))
    assert "end-of-text" in refusal(folder)


def test_weights_that_are_missing_are_never_replaced_by_chance(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "missing" in refusal(folder)


def test_a_hub_model_that_is_not_in_the_cache_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    line = refusal("nobody/no-such-model")
    assert "no such folder" in line and "the hub" in line and "\n" not in line


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"]["zebra"] = 4000
    path.write_text(json.dumps(state))
    assert "do not belong together" in refusal(folder)


CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Task : {{ m.content }}"
    "{% else %} Answer : {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_the_models_own_chat_template_decides_prompt_and_fingerprint(folder: Path) -> None:
    assert "has no chat template" in refusal(folder, template="chat")
    plain = digest(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    assert digest(folder, template="plain") == plain
    chat = digest(folder, template="chat")
    assert digest(folder) == chat
    coder = load_encoder(ModelOptions(model=str(folder), template="chat"))
    assert coder.tokenizer.chat_template == CHAT
    (folder / "chat_template.jinja").write_text(CHAT.replace("Task :", "Task"))
    assert len({plain, chat, digest(folder)}) == 3
    assert digest(folder, template="plain") == plain


def test_a_chat_template_in_the_tokenizers_config_is_found(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": CHAT}]
    for given in (CHAT, named):
        path.write_text(json.dumps({**settings, "chat_template": given}))
        coder = load_encoder(ModelOptions(model=str(folder), template="chat"))
        assert "Task" in coder.tokenizer.convert_ids_to_tokens(
            coder.encode(PAIR).prompt(0).tolist()
        )


def test_pairs_of_the_chat_template_are_scored_as_plain_passes_score_them(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT)
    loaded = load_model(ModelOptions(model=str(folder), template="chat", threads=1))
    records = loaded.encoder.encode(PAIR)
    jobs = [Job(records.prefix(*shown), np.arange(2)) for shown in ((), (1,), (0, 1), (1, 0, 1))]
    found = engine_for(loaded).score(records, jobs)
    truth = NaiveEngine(loaded.model).score(records, jobs)
    for mine, theirs in zip(found, truth, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
    assert len({scores.logprobs.tobytes() for scores in found}) == len(jobs)


def test_quantised_weights_have_a_fingerprint_of_their_own(folder: Path) -> None:
    half = {"dtype": "float16"}
    found = {digest(folder, load_in=bits, **half) for bits in (None, "4bit", "8bit")}
    assert len(found) == 3
