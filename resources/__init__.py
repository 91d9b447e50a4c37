"""The resources of the assets, which users can configure: home, tracking, model, judge and more."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home, model_path
from delift_pipeline.records.stored import version_manifest
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.stages.arms import Arms, load_arms

if TYPE_CHECKING:
    from delift_pipeline.lineage.tracking import Tracker
    from delift_pipeline.stages.judge import JudgeSetup


class StoreResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """Where data sets, scores, kernels, subsets, adapters and reports lie.

    Assets write for themselves through this store instead of an I/O manager: shards, memory-mapped
    kernels and adapter folders are no single Python value that one could hand over.
    """

    home: str = ""
    """The home directory; empty takes $DELIFT_HOME, else ./delift_home."""

    def open(self) -> Home:
        """Return the home."""
        return Home.at(self.home or None)

    def arms(self) -> Arms:
        """Load the home's arms: its own `arms.yaml`, else the package's."""
        return load_arms(self.open())


URI_VARIABLE, EXPERIMENT_VARIABLE = "DELIFT_TRACKING_URI", "DELIFT_EXPERIMENT"
DEFAULT_EXPERIMENT = "delift"


class TrackingResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """MLflow, in the home or on a server. Nothing is opened until something is logged.

    MLflow's own `MLFLOW_TRACKING_URI` is not read: what is logged holds record texts, and these go
    to a server only where one was named for them.
    """

    uri: str = ""
    """A tracking server such as http://host:5000; empty takes $DELIFT_TRACKING_URI, else the home's
    own store."""
    experiment: str = ""
    """The MLflow experiment, one a project; empty takes $DELIFT_EXPERIMENT, else `delift`."""
    enabled: bool = True
    """Whether anything is tracked at all."""

    def tracker(self, home: Home) -> "Tracker | None":
        """Return the tracker for a home, or None if tracking is off.

        Raises:
            Refused: the address of the server is not http or https.
        """
        from delift_pipeline.lineage.tracking import Tracker

        if not self.enabled:
            return None
        uri = self.uri or os.environ.get(URI_VARIABLE) or None
        if uri and not uri.startswith(("http://", "https://")):
            raise Refused(
                f"{uri!r} is not a tracking server. Give http://host:port or https://host, or "
                "nothing for the home's own store.",
                field="tracking.uri",
            )
        name = self.experiment or os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
        return Tracker(home, uri, name, lazy=True)


class ComputeResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """Device, engine, threads, batches: no result changes by them beyond the stated bounds."""

    device: str = ""
    """auto, cpu, cuda or cuda:N; empty takes auto."""
    device_map: str = ""
    """Lay one model over several GPUs and memory: auto, balanced, balanced_low_0 or sequential
    (engine transformers); empty takes one device."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves PyTorch's own choice."""
    batch_tokens: int = Field(default=0, ge=0)
    """Most target tokens scored in one batch; 0 takes the device's own."""
    memory_limit: float = Field(default=0, ge=0)
    """GiB that scoring takes over the loaded model; 0 takes 1.5 on a CPU and four fifths of what is
    free on a GPU."""
    in_flight: int = Field(default=0, ge=0)
    """Demonstrations that share batches; 0 takes 1 on a CPU and 4 on a GPU."""
    engine: str = ""
    """transformers, vllm (where installed; docs/vllm.md) or naive, the reference; empty takes the
    preset's, else transformers."""
    tensor_parallel_size: int = Field(default=0, ge=0)
    """GPUs that vLLM splits a model over; 0 takes the preset's."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes."""
    workers: int = Field(default=1, ge=1)
    """Processes that score one plan together, each pinned to GPUs of its own."""

    def model_settings(self) -> dict[str, Any]:
        """Return these settings by the names of `ModelOptions`; None means the model's default."""
        return {name: getattr(self, name) or None for name in ComputeResource.model_fields}


MODEL_VARIABLE = "DELIFT_MODEL"


class LanguageModelResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """Which model, and what of it decides scores. Nothing is loaded until a step needs it."""

    model: str = ""
    """A local folder, a hub id, preset:NAME (docs/models.md), or `demo`; empty takes the model the
    version was ingested with, else $DELIFT_MODEL. Safetensors only."""
    revision: str = ""
    """Hub revision; empty takes the newest."""
    template: str = ""
    """Prompt template: plain, paper, world, chat (the model's own) or a YAML file; empty takes the
    version's own, else the preset's, else plain."""
    window: int = Field(default=0, ge=0)
    """Tokens in one sequence; 0 takes the model's own, at most 2,048."""
    dtype: str = ""
    """float32, bfloat16 or float16; empty takes the preset's, else float32."""
    load_in: str = ""
    """4bit or 8bit weights, by bitsandbytes; empty takes those of `dtype`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    def options(self, home: Home, version: str, compute: ComputeResource) -> ModelOptions:
        """Return the options for one version: this resource's, else the version's own.

        Raises:
            Refused: no model is named anywhere, or a setting is out of range.
        """
        own = version_manifest(home, version).details
        stored = model_path(home, own["model"]) if own.get("model") and not self.model else None
        model = self.model or stored or os.environ.get(MODEL_VARIABLE)
        if not model:
            raise Refused(
                f"version {version} was ingested without a model, and none is set. Pass --model "
                f"(or ${MODEL_VARIABLE}, or the language_model resource's `model`)",
                field="model",
            )
        settings = {
            name: getattr(self, name) or None for name in LanguageModelResource.model_fields
        }
        template = self.template or own.get("template")
        return read_options(
            {**settings, "model": model, "template": template, **compute.model_settings()}
        )


class EmbedderResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """Embeds prompts for neighbour plans."""

    name: str = ""
    """tfidf, minilm, or a sentence-transformers folder or hub id; empty takes `plan.embedder` of
    arms.yaml."""

    def apply_to(self, arms: Arms) -> Arms:
        """Return the arms with this embedder in their plan options, if one is named."""
        if not self.name:
            return arms
        return replace(arms, plan=arms.plan.model_copy(update={"embedder": self.name}))


class JudgeResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """A language model that scores answers from 1 to 5 (docs/evaluation.md). Off by default."""

    model: str = ""
    """The judge's name at the endpoint; without an endpoint a model folder or hub id. Empty:
    answers are not judged."""
    endpoint: str = ""
    """An OpenAI-compatible address such as http://127.0.0.1:8000/v1."""
    api_key_variable: str = "DELIFT_JUDGE_API_KEY"
    """The environment variable that holds the endpoint's key."""
    mode: str = "single"
    """single: one score over eight dimensions; dimensions: each by itself."""
    scoring: str = "written"
    """written: the score the judge writes; expected: from the digits' log-probabilities."""
    least_mass: float = 0.5
    """expected: least probability of the digits together."""
    max_tokens: int = 512
    """Longest written judgement, in tokens."""
    parallel: int = 4
    """Requests at a time."""
    device: str = "auto"
    """Of a judge that runs here."""

    def judge_setup(self, home: Home) -> "JudgeSetup | None":
        """The judge for a home's answers, or None where there is none.

        Raises:
            Refused: a setting is out of range.
        """
        if not self.model:
            return None
        from delift_pipeline.core.validation import validate
        from delift_pipeline.evaluation.judge.questions import JudgeOptions
        from delift_pipeline.stages.judge import JudgeSetup

        settings = self.model_dump(exclude={"endpoint", "device"})
        options = validate(JudgeOptions, settings | {"endpoint": self.endpoint or None})
        local = {"model": self.model, "device": self.device}
        return JudgeSetup(home, options, None if self.endpoint else read_options(local))
