"""Which machine resources the work may take."""

import dagster as dg
from pydantic import Field


class ComputeResource(dg.ConfigurableResource):
    """Device, threads and batch size; none of them changes a result beyond the stated bounds."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves PyTorch's own choice.")
    batch_tokens: int = Field(
        default=4096, ge=1, description="Target tokens scored in one batch; more needs more memory."
    )
