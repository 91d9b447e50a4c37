"""Which machine resources the work may take."""

from typing import Any

import dagster as dg
from pydantic import Field


class ComputeResource(dg.ConfigurableResource):
    """Device, engine, threads, batches: no result changes by them beyond the stated bounds."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves PyTorch's own choice.")
    batch_tokens: int = Field(
        default=0,
        ge=0,
        description="Most target tokens scored in one batch; 0 takes the device's own.",
    )
    engine: str = Field(
        default="transformers",
        description="transformers, layered (faster for known families), vllm (where installed; "
        "docs/vllm.md) or naive, the reference.",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that vLLM splits a model over."
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of each GPU's memory that vLLM takes."
    )

    def model_settings(self) -> dict[str, Any]:
        """These settings by the names of `ModelOptions`."""
        return {
            "device": self.device,
            "threads": self.threads or None,
            "batch_tokens": self.batch_tokens or None,
            "engine": self.engine,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
        }
