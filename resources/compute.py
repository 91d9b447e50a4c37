"""Which machine resources the work may take."""

from typing import Any

import dagster as dg
from pydantic import Field


class ComputeResource(dg.ConfigurableResource):
    """Device, threads and batch size; none of them changes a result beyond the stated bounds."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves PyTorch's own choice.")
    batch_tokens: int = Field(
        default=0,
        ge=0,
        description="Most target tokens scored in one batch; 0 takes the device's own.",
    )

    def model_settings(self) -> dict[str, Any]:
        """These settings by the names of `ModelOptions`."""
        return {
            "device": self.device,
            "threads": self.threads or None,
            "batch_tokens": self.batch_tokens or None,
        }
