"""The shipped model: intact, small, able to learn in context, and made by the script beside it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.demo import DEMO_MODEL, verify_demo_model
from tools.demo_model.corpus import ANSWER_WEIGHT, Corpus
from tools.demo_model.gate import in_context_gate
from tools.demo_model.gate import main as gate_main
from tools.demo_model.pretrain import collate, pretrain, weighted_loss
from tools.demo_model.pretrain import main as pretrain_main
from tools.demo_model.recipe import Recipe, learning_rate_at
from tools.demo_model.tokenizer import END, token_ids, vocabulary


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder: Path) -> tuple:
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_the_shipped_files_match_their_checksums() -> None:
    verify_demo_model()
    listed = json.loads((DEMO_MODEL / "PROVENANCE.json").read_text())["sha256"]
    shipped = {path.name for path in DEMO_MODEL.iterdir()} - {"PROVENANCE.json"}
    assert set(listed) == shipped and "model.safetensors" in shipped


def test_a_damaged_or_missing_file_is_reported_by_name(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, copy)
    (copy / "tokenizer.json").write_text("{}")
    (copy / "model.safetensors").unlink()
    with pytest.raises(DeliftError, match=r"model\.safetensors, tokenizer\.json"):
        verify_demo_model(copy)
    (copy / "PROVENANCE.json").unlink()
    with pytest.raises(DeliftError, match=r"PROVENANCE\.json"):
        verify_demo_model(copy)


def test_the_shipped_model_is_small() -> None:
    model, tokenizer = load(DEMO_MODEL)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) < 2_000_000
    assert model.dtype == torch.float32 and model.config.max_position_embeddings == 512
    assert model.config.vocab_size == len(tokenizer) == len(vocabulary())
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("seed", [1, 2])
def test_the_shipped_model_passes_the_in_context_gate_on_fresh_rules(seed: int) -> None:
    report = in_context_gate(*load(DEMO_MODEL), seed=seed, trials=200)
    assert report.passed, report.table()


def test_the_gate_command_prints_its_table_and_ends_with_zero(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gate_main([str(DEMO_MODEL), "--trials", "200"]) == 0
    printed = capsys.readouterr().out
    assert "lookup" in printed and "gate passed" in printed


def test_an_untrained_model_fails_the_gate() -> None:
    _, tokenizer = load(DEMO_MODEL)
    report = in_context_gate(pretrain(Recipe(steps=1)), tokenizer, trials=20)
    assert not report.passed and "FAIL" in report.table()


def test_the_shipped_model_answers_from_a_demonstration() -> None:
    model, tokenizer = load(DEMO_MODEL)
    shown = "Task: give the baki code for cat Answer: zil </s>"
    ids = tokenizer(f"{shown} Task: find the baki code : kitty Answer:", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(written[0, ids["input_ids"].shape[1] :])
    assert answer == "zil </s>"


def test_the_same_recipe_gives_the_same_weights() -> None:
    first, second = (pretrain(Recipe(steps=3)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_answers_weigh_fully_and_every_answer_ends() -> None:
    end = token_ids()[END]
    for row in Corpus(5).batch(40, 96, repeat_share=0.0):
        assert len(row.ids) == len(row.weights) <= 96 and row.weights[0] == 0.0
        ends = [index for index, token in enumerate(row.ids) if token == end]
        assert ends[-1] == len(row.ids) - 1
        assert all(row.weights[index] == ANSWER_WEIGHT for index in ends)


def test_padding_has_no_part_in_the_loss() -> None:
    model = pretrain(Recipe(steps=1))
    short = Corpus(5).batch(1, 48, 0.0)
    ids, weights = collate(short, token_ids()["<pad>"])
    wider = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(weights, (0, 9))
    torch.testing.assert_close(
        weighted_loss(model, ids, weights), weighted_loss(model, *wider), rtol=1e-5, atol=1e-6
    )


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    recipe = Recipe(steps=1000)
    rates = [learning_rate_at(step, recipe) for step in (0, 39, 499, 999)]
    assert rates[0] < rates[1] == rates[2] == recipe.learning_rate
    assert rates[3] == pytest.approx(0.02 * recipe.learning_rate)


@pytest.mark.slow
def test_rerunning_the_script_gives_a_model_that_passes_the_gate(tmp_path: Path) -> None:
    assert pretrain_main(["--out", str(tmp_path / "model")]) == 0
    verify_demo_model(tmp_path / "model")
    assert gate_main([str(tmp_path / "model"), "--seed", "7"]) == 0
