"""Weights in 4 or 8 bits by bitsandbytes (Dettmers et al., arXiv 2305.14314 and 2208.07339)."""

import importlib.util
from typing import TYPE_CHECKING, Any

from delift_pipeline.errors import Fault, Refused

if TYPE_CHECKING:
    import torch

PACKAGE = "bitsandbytes"


def refuse_without_bitsandbytes(asked: str, instead: str, field: str) -> None:
    """Say how to install bitsandbytes where it is missing.

    Args:
        asked: What needs it.
        instead: What does without.
        field: The option that asks for it.

    Raises:
        Refused: it is missing.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        why = f"{asked} needs bitsandbytes: pip install 'delift-pipeline[qlora]', or {instead}"
        raise Refused(Fault(why, field=field))


def quantisation(load_in: str, dtype: "torch.dtype") -> Any:
    """How linear weights are loaded in `4bit` (nf4, doubly quantised) or `8bit` (LLM.int8)."""
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
