"""`delift verify` finds a flipped byte; what it sets aside is scored again."""

import json
from pathlib import Path

import pytest

from delift_pipeline.cli.main import run
from delift_pipeline.core.home import Home
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.store import ScoreStore
from tests.scoring.tables import score_table


@pytest.fixture
def scored(home: Home, llama: LoadedModel, made_up) -> ScoreStore:
    store = ScoreStore(home.scores(llama.fingerprint.digest))
    score_table(llama, store, llama.encoder.encode(made_up(6)))
    return store


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)


def test_a_flipped_byte_is_found_set_aside_and_scored_again(
    home: Home,
    scored: ScoreStore,
    llama: LoadedModel,
    made_up,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--home", str(home.root)]
    before = score_table(llama, scored, llama.encoder.encode(made_up(6)))
    assert run(["verify", *where]) == 0
    last = sorted((scored.folder / "shards").glob("*.safetensors"))[-1]
    flip(last)
    capsys.readouterr()
    assert run(["verify", *where]) == 1
    assert last.stem in capsys.readouterr().out
    assert run(["verify", *where, "--repair", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [bad["shard"] for bad in told["stores"][0]["bad"]] == [last.stem]
    assert run(["verify", *where]) == 0
    again = ScoreStore(scored.folder)
    assert score_table(llama, again, llama.encoder.encode(made_up(6))).equals(before)


def test_an_empty_home_has_nothing_to_verify(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "--home", str(home.root)]) == 0
    assert "no scores" in capsys.readouterr().out


def test_a_manifest_of_another_fingerprint_is_named(
    home: Home, scored: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scored.folder / "manifest.json"
    path.write_text(path.read_text().replace(scored.folder.name, "0" * 32))
    assert run(["verify", "--home", str(home.root)]) == 0
    assert f"that of {'0' * 32}" in capsys.readouterr().out
