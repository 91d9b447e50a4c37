"""Which machine resources the work may take."""

from typing import Any

import dagster as dg
from pydantic import Field


class ComputeResource(dg.ConfigurableResource):
    """Device, engine, threads, batches: no result changes by them beyond the stated bounds."""

    device: str = Field(default="", description="auto, cpu, cuda or cuda:N; empty takes auto.")
    device_map: str = Field(
        default="",
        description="Lay one model over several GPUs and memory: auto, balanced, balanced_low_0 or "
        "sequential (engine transformers); empty takes one device.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves PyTorch's own choice.")
    batch_tokens: int = Field(
        default=0,
        ge=0,
        description="Most target tokens scored in one batch; 0 takes the device's own.",
    )
    memory_limit: float = Field(
        default=0,
        ge=0,
        description="GiB that scoring takes over the loaded model; 0 takes 1.5 on a CPU and four "
        "fifths of what is free on a GPU.",
    )
    in_flight: int = Field(
        default=0,
        ge=0,
        description="Demonstrations that share batches; 0 takes 1 on a CPU and 4 on a GPU.",
    )
    engine: str = Field(
        default="",
        description="transformers, vllm (where installed; docs/vllm.md) or naive, the reference; "
        "empty takes the preset's, else transformers.",
    )
    tensor_parallel_size: int = Field(
        default=0, ge=0, description="GPUs that vLLM splits a model over; 0 takes the preset's."
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of each GPU's memory that vLLM takes."
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Processes that score one plan together, each pinned to GPUs of its own.",
    )

    def model_settings(self) -> dict[str, Any]:
        """These settings by the names of `ModelOptions`; None where the model's own stand."""
        return {name: getattr(self, name) or None for name in ComputeResource.model_fields}
