"""Tokenizers of several kinds, trained on a few words, and records."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Task: say what a dog is and how it plays with the red ball",
    "Answer: a dog is an animal that plays with you all day long",
    "Query: how many balls do 3 dogs have if each has 2 of them?",
    "Instruction: please answer in one line\nInput: a < b > c / s | im_end",
]
ENDS = ("<s>", "</s>", "<pad>")
ADDED = ("<|im_start|>", "<|im_end|>")
TOOL = "<tool_call>"


def _wrapped(core: Any, specials: tuple[str, ...], **names: str) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken

    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    # As chat models do: a marker that is not flagged as special.
    core.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def byte_level() -> PreTrainedTokenizerFast:
    """Like GPT-2, Llama 3 and Qwen: bytes, one token that begins, ends and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    return _wrapped(core, (end, *ADDED), bos_token=end, eos_token=end, unk_token=end)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Like Llama 2 and Mistral: end tokens in the word list, a blank put before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    trained = Tokenizer(models.BPE())
    listed = ["<unk>", *ENDS[:2], *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=listed, show_progress=False)
    trained.train_from_iterator([line.replace(" ", "▁") for line in TEXT], trainer)
    state = json.loads(trained.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    state["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core = Tokenizer.from_str(json.dumps(state))
    core.normalizer = normalizers.Sequence(  # pyright: ignore
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(core, ADDED, **named)


def unigram() -> PreTrainedTokenizerFast:
    """Pieces with scores, the end tokens among them, and a blank before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted({char for line in TEXT for char in line.replace(" ", "▁")} | set("</s>"))
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0)]
    pieces += [(letter, -5.0) for letter in letters] + [("▁dog", -6.0), ("▁ball", -6.0)]
    core = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # pyright: ignore
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(core, ENDS[:2], **named)


def words_with_ends() -> PreTrainedTokenizerFast:
    """One token a word, the end tokens in the word list, no begin-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(word for line in TEXT for word in line.split())
    listed = ["<unk>", "</s>", *words]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(listed)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return _wrapped(core, ("</s>",), eos_token="</s>", unk_token="<unk>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "words": words_with_ends,
}


@pytest.fixture(params=sorted(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each kind in turn."""
    return KINDS[request.param]()


@pytest.fixture
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level kind."""
    return byte_level()


@pytest.fixture
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """The kind that puts a blank before every text."""
    return byte_fallback()


@pytest.fixture
def word_tokenizer() -> PreTrainedTokenizerFast:
    """The kind with one token a word."""
    return words_with_ends()
