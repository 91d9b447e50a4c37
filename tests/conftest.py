"""Fixtures shared by all tests."""

import contextvars
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from delift_pipeline.core.home import Home
from delift_pipeline.records.schema import RECORD_SCHEMA, record_id
from delift_pipeline.scoring.options import ModelOptions
from tools.real_model import FOLDER, UNAVAILABLE, VARIABLE

ROOT = Path(__file__).resolve().parents[1]
OURS = ("DELIFT_HOME", "DELIFT_MODEL", "DELIFT_DEBUG", "DAGSTER_HOME")
DATA_VARIABLE = "DELIFT_TEST_DATA"
THINGS = "red blue green grey pink gold teal plum rust lime navy sand".split()
CODES = "one two three four five six".split()
WORDS = ["<unk>", "Task:", "Answer:", "say", "the", "code", "of", *THINGS, *CODES]
SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_data_root() -> Path:
    """Where the public data and the tiny pretrained model lie."""
    beside = ROOT.parent / "shared"
    return Path(os.environ.get(DATA_VARIABLE) or beside)


test_data_root.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Dagster configures logging for each run, which closes all handlers. absl's closes its stream
    # unless that is the process's own; it would otherwise be the one that pytest captures.
    from absl import logging

    logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that need the public data where it is absent, and say so."""
    root = test_data_root()
    if (root / "data").is_dir() and (root / "models").is_dir():
        return
    reason = f"no public data at {root}: set {DATA_VARIABLE} (docs/tests.md says how to make it)"
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Run a test in an empty context of its own.

    Dagster keeps the current instance's storage in a context variable. An instance left to the
    garbage collector puts back the value from before it was entered, which may belong to an
    instance that is long gone, in the middle of another test. In another context it cannot.
    """
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    contextvars.Context().run(pyfuncitem.obj, **arguments)
    return True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public datasets' folder."""
    return test_data_root() / "data"


@pytest.fixture(scope="session")
def stories() -> Path:
    """The real tiny pretrained model's folder."""
    return test_data_root() / "models" / "stories260k"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of a real chat model."""
    return real_model_folder()


def real_model_folder(default: Path = FOLDER) -> Path:
    """Return the folder that DELIFT_REAL_MODEL names, or else make the default folder."""
    if named := os.environ.get(VARIABLE):
        if not (Path(named) / "config.json").is_file():
            pytest.fail(f"{VARIABLE}: {named}: has no config.json: name the folder of a chat model")
        return Path(named)
    command = [sys.executable, "-m", "tools.real_model", str(default)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == UNAVAILABLE:
        pytest.skip(f"no real chat model: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return default


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home.at(tmp_path / "home")


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of about 10,000 parameters with a word-level tokenizer."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    config = LlamaConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=len(WORDS) + SPECIAL.index("<s>"),
        eos_token_id=len(WORDS) + SPECIAL.index("</s>"),
        tie_word_embeddings=True,
        # Embeddings of unit size: adapters alone can then move the output head as far as needed.
        initializer_range=0.4,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_chat_model(folder: Path, window: int = 4096) -> Path:
    """A random byte-level Llama of about 20,000 parameters with a chat template."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    core.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(letters) + len(special),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=window,
        bos_token_id=len(letters),
        eos_token_id=len(letters) + 1,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_records(count: int = len(THINGS)) -> pl.DataFrame:
    """`count` records, one for each thing, whose answers have one to three words."""
    rows = []
    for i, thing in enumerate(THINGS[:count]):
        answer = " ".join(CODES[(i * 5 + k) % len(CODES)] for k in range(1 + i % 3))
        text = {"instruction": "say the code of", "input": thing, "output": answer}
        facts = {"source": "test", "task": "code", "copies": 1, "source_ids": [str(i)]}
        rows.append({"record_id": record_id(**text), **text, **facts})
    return pl.DataFrame(rows, schema=RECORD_SCHEMA)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    """Options of a tiny random model whose vocabulary is that of `records`."""
    import torch

    torch.set_num_threads(1)
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return ModelOptions(model=str(folder), device="cpu")


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random chat model that reads bytes."""
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
def records() -> pl.DataFrame:
    """Twelve records that can be memorised."""
    return make_records()


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON document it has to be."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    @property
    def faults(self) -> list[str]:
        """The lines of a refusal: status 2, nothing on standard output, no traceback."""
        assert self.status == 2, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        return self.err.splitlines()


Delift = Callable[..., Answer]


@pytest.fixture
def delift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Delift:
    """Run a command in this process."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Answer:
        from delift_pipeline.cli import main

        capsys.readouterr()
        status = main.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def program() -> Delift:
    """Run a command as a process of its own."""

    def call(*arguments: object, cwd: Path | None = None) -> Answer:
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        done = subprocess.run(
            [sys.executable, "-m", "delift_pipeline.cli.main", *map(str, arguments)],
            env=kept | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call
