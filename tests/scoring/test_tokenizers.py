"""Scores do not depend on a tokenizer's habits: padding, begin-of-text, bytes, added tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from delift_pipeline.scoring.engine import Job
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions

TOKEN_BOUND = 1e-5
MakeModel = Callable[..., Path]
TEXTS = pl.DataFrame(
    {
        "record_id": [f"{place:032x}" for place in range(4)],
        "instruction": ["one little girl", "big red ball", "her dog", "a day"],
        "input": ["", "the big dog", "", "with the ball"],
        "output": ["happy to play", "dog", "saw her and it was happy", "a ball"],
    }
)


def subword_tokenizer(bos: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Letters, a few merged pieces, and the 256 bytes for everything else, as SentencePiece has."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyzTA:.",
        "th",
        "he",
        "in",
        "er",
        "the",
        "\u2581the",
    ]
    merges = [("t", "h"), ("h", "e"), ("i", "n"), ("e", "r"), ("th", "e"), ("\u2581", "the")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    core = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.normalizer = normalizers.Replace(" ", "\u2581")  # pyright: ignore
    core.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", **names
    )


def loaded_with(tokenizer: PreTrainedTokenizerFast, make: MakeModel, folder: Path) -> LoadedModel:
    torch.set_num_threads(1)
    made = make("llama", folder, tokenizer=tokenizer)
    return load_model(ModelOptions(model=str(made), threads=1))


def scores_of(loaded: LoadedModel, frame: pl.DataFrame = TEXTS) -> list[np.ndarray]:
    """Scores of every job, each checked against plain passes over the whole sequences."""
    records = loaded.encoder.encode(frame)
    rows = np.arange(len(records))
    jobs = [Job(records.prefix(), rows), *(Job(records.prefix(j), rows) for j in rows.tolist())]
    found = [each.logprobs for each in engine_for(loaded).score(records, jobs)]
    for job, logprobs in zip(jobs, found, strict=True):
        expected = []
        for row in rows.tolist():
            answer = records.answer(row)
            whole = np.concatenate([job.prefix, records.prompt(row), answer]).astype(np.int64)
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.from_numpy(whole)[None]).logits[0]  # pyright: ignore
            predicted = torch.log_softmax(logits[-len(answer) - 1 : -1], -1).numpy()
            expected.append(predicted[np.arange(len(answer)), answer])
        np.testing.assert_allclose(logprobs, np.concatenate(expected), atol=TOKEN_BOUND)
    return found


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_padding_side_and_a_missing_padding_token_change_no_bit(
    make_model: MakeModel, tmp_path: Path
) -> None:
    found = []
    for side, pad in (("right", None), ("left", None), ("left", "</s>")):
        tokenizer = subword_tokenizer()
        tokenizer.padding_side = side
        if pad:
            tokenizer.pad_token = pad
        found.append(scores_of(loaded_with(tokenizer, make_model, tmp_path / f"{side}{bool(pad)}")))
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_a_tokenizer_that_adds_begin_of_text_scores_as_one_that_does_not(
    make_model: MakeModel, tmp_path: Path
) -> None:
    adding = loaded_with(subword_tokenizer(adds_bos=True), make_model, tmp_path / "adds")
    leaving = loaded_with(subword_tokenizer(), make_model, tmp_path / "leaves")
    assert adding.tokenizer("a")["input_ids"] != leaving.tokenizer("a")["input_ids"]
    assert same(scores_of(adding), scores_of(leaving))
    records = adding.encoder.encode(TEXTS)
    begin = adding.tokenizer.bos_token_id
    whole = [records.prefix(1), *(records.prompt(row) for row in range(4))]
    assert records.prefix().tolist()[:1] == [begin] == records.prefix(1).tolist()[:1]
    assert sum((part == begin).sum() for part in whole) == 1


def test_without_begin_of_text_nothing_stands_before_a_target(
    make_model: MakeModel, tmp_path: Path
) -> None:
    loaded = loaded_with(subword_tokenizer(bos=False), make_model, tmp_path / "none")
    assert len(loaded.encoder.encode(TEXTS).prefix()) == 0
    scores_of(loaded)


@pytest.mark.parametrize("answer", ["\u00fc", "\u732b \u72ac", "\U0001f600", "one\u200bday"])
def test_what_the_vocabulary_lacks_is_scored_byte_by_byte(
    answer: str, make_model: MakeModel, tmp_path: Path
) -> None:
    loaded = loaded_with(subword_tokenizer(), make_model, tmp_path / "bytes")
    frame = TEXTS.with_columns(pl.lit(answer).alias("output"))
    records = loaded.encoder.encode(frame)
    foreign = sum(len(letter.encode()) for letter in answer if not letter.isascii())
    known = loaded.tokenizer.get_vocab()
    byte_ids = {known[f"<0x{byte:02X}>"] for byte in range(256)}
    assert sum(int(token) in byte_ids for token in records.answer(0)) == foreign
    scores_of(loaded, frame)


def test_an_added_special_token_is_never_read_from_a_record(
    make_model: MakeModel, tmp_path: Path
) -> None:
    tokenizer = subword_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})  # pyright: ignore
    loaded = loaded_with(tokenizer, make_model, tmp_path / "added")
    frame = TEXTS.with_columns(pl.lit("the <|tool|> and </s> <s>").alias("output"))
    records = loaded.encoder.encode(frame)
    known = loaded.tokenizer.get_vocab()
    special = {known[name] for name in ("<|tool|>", "<s>", "</s>")}
    assert records.answer(0).tolist()[-1] == loaded.tokenizer.eos_token_id
    assert not set(records.answer(0).tolist()[:-1]) & special
    scores_of(loaded, frame)
