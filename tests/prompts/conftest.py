"""Tokenizers of several kinds, trained on a few words, and records."""

import json
from collections.abc import Callable
from pathlib import Path
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


def _wrapped(
    core: Any, specials: tuple[str, ...], *, swallow: bool = False, **names: Any
) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken

    core.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=swallow) for t in specials]
    )
    # As chat models do: a marker that is not flagged as special.
    core.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def byte_level(added: tuple[str, ...] = ADDED, blank: bool = True) -> PreTrainedTokenizerFast:
    """Like GPT-2, Llama 3 and Qwen: bytes, one token that begins, ends and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    return _wrapped(core, (end, *added), bos_token=end, eos_token=end, unk_token=end)


def byte_fallback(
    added: tuple[str, ...] = ADDED, blank: bool = True, swallow: bool = False
) -> PreTrainedTokenizerFast:
    """Like Llama 2 and Mistral: end tokens in the word list, a blank put before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    # As in SentencePiece no piece reaches over a blank.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # pyright: ignore
    listed = ["<unk>", *ENDS[:2], *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=listed, show_progress=False)
    trained.train_from_iterator([line.replace(" ", "▁") for line in TEXT], trainer)
    state = json.loads(trained.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    state["model"].update(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core = Tokenizer.from_str(json.dumps(state))
    core.normalizer = normalizers.Sequence(  # pyright: ignore
        [*([normalizers.Prepend("▁")] if blank else []), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(  # pyright: ignore
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(core, added, swallow=swallow, **named)


def metaspace(added: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Like Mistral v0.3: a blank before the first text of a sequence, none after a marker."""
    from tokenizers import pre_tokenizers

    made = byte_fallback(added, blank=False)
    made.backend_tokenizer.normalizer = None  # pyright: ignore
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(  # pyright: ignore
        prepend_scheme="first", split=False
    )
    return made


def unigram() -> PreTrainedTokenizerFast:
    """Pieces with scores, the end tokens among them, and a blank before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted({char for line in TEXT for char in line.replace(" ", "▁")} | set("</s>"))
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0)]
    pieces += [(letter, -5.0) for letter in letters] + [("▁dog", -6.0), ("▁ball", -6.0)]
    core = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # pyright: ignore
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
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


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHATS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(blank=False),
    "thinking": lambda: byte_level((*ADDED, "<think>", "</think>"), blank=False),
    "llama3": lambda: byte_level(HEADERS, blank=False),
    "mistral": byte_fallback,
    "mistral-control": lambda: metaspace(("[INST]", "[/INST]")),
    "phi3": lambda: byte_fallback(ROLES, swallow=True),
    "gemma": lambda: byte_fallback(("<start_of_turn>", "<end_of_turn>"), blank=False),
    "vicuna": lambda: byte_fallback(blank=False),
}


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind a chat template was written for, with that template."""
    made = CHATS[name]()
    folder = Path(__file__).with_name("chat_templates")
    made.chat_template = (folder / f"{name}.jinja").read_text("utf-8")
    return made


@pytest.fixture(scope="session")
def chat_named() -> Callable[[str], PreTrainedTokenizerFast]:
    """`chat_tokenizer`."""
    return chat_tokenizer


@pytest.fixture(params=sorted(CHATS))
def chatty(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of each chat template in turn."""
    return chat_tokenizer(request.param)


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
