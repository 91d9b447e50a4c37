"""vLLM as one of the methods of `bench.scoring`, where it is installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from delift_pipeline.scoring.engine import Engine
from delift_pipeline.scoring.options import ModelOptions

WINDOW = 1024
NOT_INSTALLED = "vLLM is not installed in this environment (docs/vllm.md): no vllm row"
NARROWEST_HEAD_CPU = 32
"""vLLM's attention on a CPU has no narrower heads."""


def installed() -> bool:
    """Whether vLLM can be imported."""
    return find_spec("vllm") is not None


def takes_part(model: Any) -> bool:
    """Whether vLLM is installed and knows the model's heads."""
    width = model.config.hidden_size // model.config.num_attention_heads
    return installed() and (model.device.type != "cpu" or width >= NARROWEST_HEAD_CPU)


@contextmanager
def vllm_beside(shape: str, model: Any) -> Iterator[Engine | None]:
    """The engine vllm with a model's weights, in this process; None where it takes no part."""
    if not takes_part(model):
        yield None
        return
    from delift_pipeline.scoring.vllm_engine import VllmEngine

    threads, dtype = torch.get_num_threads(), str(model.dtype).removeprefix("torch.")
    options = ModelOptions.model_validate({"model": shape, "dtype": dtype, "threads": threads})
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        engine = VllmEngine(Path(folder), options, WINDOW)
        # Importing vLLM sets torch's threads to its own choice.
        torch.set_num_threads(threads)
        try:
            yield engine
        finally:
            engine.close()
