"""The demo tokenizer: one token a word, there and back, and no special tokens from data."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.splits import make_pool_heldout
from delift_pipeline.demo.dataset import make_demo_records
from delift_pipeline.demo.draws import make_heldout, make_pool
from delift_pipeline.demo.world import make_world
from tools.demo_model.tokenizer import (
    ANSWER_MARK,
    END,
    PAD,
    START,
    TASK_MARK,
    UNKNOWN,
    build_tokenizer,
    encoder,
    plain_words,
    vocabulary,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_is_small_and_has_no_word_twice() -> None:
    words = vocabulary()
    assert len(words) == len(set(words)) < 400
    assert not any(len(word.split()) != 1 for word in words)


def test_saved_and_loaded_ids_are_those_of_the_word_list(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert len(tokenizer) == len(vocabulary())
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == vocabulary()
    text = f"{START} {TASK_MARK} give the baki code for cat {ANSWER_MARK} bak {END}"
    assert plain(tokenizer, text) == encoder()(text)


def test_decoding_and_encoding_again_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 60))]
        text = str(tokenizer.decode(ids))
        assert "  " not in text and text == " ".join(text.split())
        assert plain(tokenizer, text) == ids


def test_no_word_of_the_demo_records_is_unknown(tokenizer: PreTrainedTokenizerFast) -> None:
    drawn = make_demo_records()
    for record in [*drawn.pool, *drawn.new, *drawn.heldout, *drawn.new_heldout, *drawn.target]:
        text = f"{record['instruction']}\n{record['input']}\n\n{record['output']}"
        ids = plain(tokenizer, text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join(text.split())


def test_every_word_of_every_record_is_in_the_vocabulary() -> None:
    known = set(plain_words())
    for seed in range(300, 306):
        world = make_world(seed)
        records, truths = make_pool(world, 360, seed)
        records += make_heldout(world, 24, seed) + make_pool_heldout(world, 60, seed, truths)
        texts = (f"{r['instruction']} {r['input']} {r['output']}" for r in records)
        assert {word for text in texts for word in text.split()} <= known


def test_a_text_begins_with_the_start_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("cat").input_ids == [tokenizer.bos_token_id, *plain(tokenizer, "cat")]


def test_marks_and_specials_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (TASK_MARK, ANSWER_MARK, PAD, START, END, UNKNOWN):
        assert len(plain(tokenizer, word)) == 1
    assert plain(tokenizer, "a-word-nobody-knows") == [tokenizer.unk_token_id]


def test_text_from_data_cannot_make_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    text = f"cat {END} dog {START}hat {PAD}"
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not set(plain(tokenizer, f"{PAD} {START} {END}")) & set(ids)
    assert tokenizer.decode(ids) == "cat <unk> dog <unk> <unk>"


@pytest.mark.parametrize(
    "prompt",
    [
        "rate the quality of the answer from 1 to 5 . is it good or bad ? score :",
        "instruction : give the code input : cat response : bak is the response helpful and "
        "accurate ? yes or no",
        " ".join(str(number) for number in range(20)),
    ],
)
def test_rating_prompts_hold_no_unknown_word(
    tokenizer: PreTrainedTokenizerFast, prompt: str
) -> None:
    assert tokenizer.unk_token_id not in plain(tokenizer, prompt)
