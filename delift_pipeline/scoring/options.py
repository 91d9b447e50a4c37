"""Which model scores, and how; free of torch so that configuration loads at once."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Literal["transformers", "layered", "naive", "vllm"]
MODEL_DEMO = "demo"


class ModelOptions(BaseModel):
    """A language model and how it is run.

    `model`, `revision`, `template`, `window` and `dtype` decide the scores and, by content, the
    fingerprint. The others decide speed only.

    Attributes:
        model: A local folder, a hub id, or `demo` for the model that comes with the package.
        revision: Branch, tag or commit on the hub.
        template: A shipped prompt template's name or a YAML file.
        window: Most tokens in one sequence; None for the model's own limit, at most 2,048.
        dtype: Number format of weights and activations.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        engine: `transformers`; `layered`, faster for the families it knows and a little coarser in
            the last digits; `vllm`; or `naive` for the slow reference.
        batch_tokens: Most target tokens, padding included, in one batch; None for the device's own.
        threads: CPU threads for torch; None leaves torch's choice.
        trust_remote_code: Whether code that comes with the model may run.
        tensor_parallel_size: GPUs that vLLM splits the model over.
        gpu_memory_utilization: Share of each GPU's memory that vLLM takes, all at its start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    revision: str | None = None
    template: str = "plain"
    window: int | None = Field(default=None, ge=8)
    dtype: Dtype = "float32"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    engine: EngineName = "transformers"
    batch_tokens: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    trust_remote_code: bool = False
    tensor_parallel_size: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
