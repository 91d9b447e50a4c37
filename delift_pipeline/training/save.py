"""Trained weights as a PEFT folder or a whole model's folder, with no path of this machine."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from delift_pipeline.scoring.names import portable_name
from delift_pipeline.storage.atomic import read_json, write_json

ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(model: PeftModel, base: str, out: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`; equal weights, equal bytes.

    Args:
        model: The model with its trained adapter.
        base: The base model as it was asked for.
        out: The folder to write to.
    """
    model.peft_config["default"].base_model_name_or_path = portable_name(base)
    # The vocabulary is never resized, and asking PEFT to find out would ask the hub.
    model.save_pretrained(str(out), save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    config = read_json(out / ADAPTER_CONFIG)
    # PEFT holds the module names in a set, whose order changes from process to process.
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(out / ADAPTER_CONFIG, config)


def save_full(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, out: Path
) -> None:
    """Write a whole model: safetensors in `dtype`, configuration and tokenizer."""
    model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    model.config.use_cache = True
    model.save_pretrained(out)
    tokenizer.save_pretrained(str(out))
