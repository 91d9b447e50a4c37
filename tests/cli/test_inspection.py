"""`delift score` and `delift prompt`: what is scored, against plain forward passes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from delift_pipeline.demo import DEMO_MODEL

MODEL = ("--model", "demo", "--template", "world")
SCHEMA = {
    "target_id": pl.String,
    "demonstration_id": pl.String,
    "sum_logprob": pl.Float32,
    "squared_distance": pl.Float32,
    "tokens": pl.Int32,
}
TRICKY = [
    {"id": "a", "instruction": "Say </s> and <s>", "input": "x", "output": "One </s> she <s> ran."},
    {"id": "b", "instruction": "Tell a story", "input": "", "output": "A little girl saw a dog."},
]


@pytest.fixture(scope="session")
def eight(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first eight records of the pool."""
    path = tmp_path_factory.mktemp("eight") / "eight.jsonl"
    lines = files.first_pool.read_text(encoding="utf-8").splitlines()[:8]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tricky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records whose texts look like special tokens."""
    path = tmp_path_factory.mktemp("tricky") / "tricky.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TRICKY), encoding="utf-8")
    return path


def forward(model: Any, prompt: dict[str, Any]) -> tuple[float, float]:
    """Sum of log-probabilities and the distance d of the answer, in one plain pass."""
    ids = torch.tensor(prompt["token_ids"])
    with torch.inference_mode():
        logits = model(ids[None]).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    found = [logprobs[at - 1, ids[at]].item() for at in prompt["answer_positions"]]
    return sum(found), float(np.sqrt(np.square(1 - np.exp(found)).mean()))


def test_score_has_a_row_for_each_pair_and_each_record_alone(
    delift: Any, eight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    command = ("score", eight, *MODEL, "--threads", 1, "--home", tmp_path / "home", "--out", out)
    report = delift(*command, "--json").json
    table = pl.read_parquet(out)
    assert dict(table.schema) == SCHEMA
    assert table.height == 8 * 8 + 8
    assert table["demonstration_id"].null_count() == 8
    assert table.unique(["target_id", "demonstration_id"]).height == table.height
    assert table.null_count().select(pl.exclude("demonstration_id")).sum_horizontal().item() == 0
    assert report["pairs_scored"] == 64
    written = out.read_bytes()
    again = delift(*command, "--json").json
    assert (again["pairs_scored"], again["pairs_reused"]) == (0, 64)
    assert out.read_bytes() == written


def test_scores_equal_plain_forward_passes_of_what_prompt_shows(
    delift: Any, eight: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "scores.parquet"
    common = (*MODEL, "--threads", 1, "--home", tmp_path / "home")
    assert delift("score", eight, *common, "--out", out).status == 0
    table = {(row[0], row[1]): row[2:] for row in pl.read_parquet(out).iter_rows()}
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    names = list(dict.fromkeys(target for target, _ in table))[:3]
    for target in names:
        for shown in (None, *names):
            option = ("--demonstration", shown) if shown else ()
            prompt = delift("prompt", eight, *MODEL, "--target", target, *option, "--json").json
            logprob, distance = forward(model, prompt)
            scored_logprob, scored_squared, tokens = table[target, shown]
            assert tokens == len(prompt["answer_positions"])
            assert scored_logprob == pytest.approx(logprob, abs=1e-4)
            assert np.sqrt(scored_squared) == pytest.approx(distance, abs=1e-5)


def test_score_never_replaces_its_input(delift: Any, eight: Path, tmp_path: Path) -> None:
    before = eight.read_bytes()
    (fault,) = delift("score", eight, *MODEL, "--home", tmp_path, "--out", eight).faults
    assert "--out" in fault
    assert eight.read_bytes() == before


def test_prompt_text_tokens_and_positions_agree(delift: Any, eight: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    target, shown = (json.loads(line) for line in eight.read_text().splitlines()[:2])
    names = ("--target", target["id"], "--demonstration", shown["id"])
    prompt = delift("prompt", eight, *MODEL, *names, "--json").json
    ids, positions = prompt["token_ids"], prompt["answer_positions"]
    assert set(prompt) == {"text", "token_ids", "answer_positions"}
    assert positions == list(range(positions[0], len(ids)))
    answer = tokenizer.decode(ids[positions[0] : -1]).split()
    assert answer == target["output"].split()
    assert ids[-1] == tokenizer.eos_token_id
    assert "".join(tokenizer.decode(ids).split()) == "".join(prompt["text"].split())
    for text in (target["input"], target["output"], shown["instruction"], shown["output"]):
        assert text in prompt["text"]


def test_prompts_with_and_without_a_demonstration_differ_by_it_alone(
    delift: Any, eight: Path
) -> None:
    target, shown = (json.loads(line)["id"] for line in eight.read_text().splitlines()[:2])
    alone = delift("prompt", eight, *MODEL, "--target", target, "--json").json
    option = ("--demonstration", shown)
    both = delift("prompt", eight, *MODEL, "--target", target, *option, "--json").json
    length = len(alone["answer_positions"])
    assert len(both["answer_positions"]) == length
    assert both["token_ids"][-length:] == alone["token_ids"][-length:]
    assert len(both["token_ids"]) > len(alone["token_ids"])


@pytest.mark.data
def test_text_that_looks_like_special_tokens_stays_text(
    delift: Any, tricky: Path, stories: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    names = ("--target", "a", "--demonstration", "b")
    prompt = delift("prompt", tricky, "--model", stories, *names, "--json").json
    ids = prompt["token_ids"]
    assert "One </s> she <s> ran." in prompt["text"]
    assert [at for at, one in enumerate(ids) if one == tokenizer.eos_token_id] == [len(ids) - 1]
    assert [at for at, one in enumerate(ids) if one == tokenizer.bos_token_id] == [0]
    answer = tokenizer.decode([ids[at] for at in prompt["answer_positions"][:-1]])
    assert answer.strip() == TRICKY[0]["output"]
    assert tokenizer.decode(ids) == prompt["text"]


def test_prompt_takes_record_ids_and_source_ids(delift: Any, eight: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.parquet"
    common = ("--threads", 1, "--home", tmp_path / "home", "--out", out)
    assert delift("score", eight, *MODEL, *common).status == 0
    record = pl.read_parquet(out)["target_id"][0]
    source = json.loads(eight.read_text().splitlines()[0])["id"]
    one, other = (
        delift("prompt", eight, *MODEL, "--target", name, "--json").json
        for name in (record, source)
    )
    assert one == other


def test_an_unknown_id_is_refused(delift: Any, eight: Path) -> None:
    (fault,) = delift("prompt", eight, *MODEL, "--target", "nobody").faults
    assert "nobody" in fault and "--target" in fault


def test_several_demonstrations_stand_in_the_order_given(delift: Any, eight: Path) -> None:
    rows = [json.loads(line) for line in eight.read_text().splitlines()]
    names = [row["id"] for row in rows[:3]]
    shown = ("--demonstration", names[1], "--demonstration", names[2])
    both = delift("prompt", eight, *MODEL, "--target", names[0], *shown, "--json").json
    one = delift("prompt", eight, *MODEL, "--target", names[0], *shown[2:], "--json").json
    assert both["token_ids"][-len(one["token_ids"]) + 1 :] == one["token_ids"][1:]
    assert both["text"].index(rows[1]["input"]) < both["text"].rindex(rows[2]["input"])


def test_the_chat_template_is_shown_and_scored_with_what_it_trims(
    delift: Any, eight: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(DEMO_MODEL, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}Task: {{ m.content | trim }}"
        "{% else %} Answer: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    common = ("--model", folder, "--template", "chat")
    said = delift("prompt", eight, *common, "--target", "0" * 32)
    assert said.status == 2
    target, shown = (json.loads(line)["id"] for line in eight.read_text().splitlines()[:2])
    names = ("--target", target, "--demonstration", shown)
    answer = delift("prompt", eight, *common, *names, "--json")
    assert "takes white space off the ends of the user's text" in answer.err
    assert answer.json["text"].count("Task: ") == 2
    out = tmp_path / "s.parquet"
    scored = delift("score", eight, *common, "--threads", 1, "--home", tmp_path, "--out", out)
    assert scored.status == 0 and pl.read_parquet(out).height == 8 * 8 + 8
    refused = delift("prompt", eight, "--model", "demo", "--template", "chat", *names).faults
    assert len(refused) == 1 and "has no chat template" in refused[0]
