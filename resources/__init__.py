"""The resources of the assets, which users can configure: home, tracking, model, judge and more."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home, model_path
from delift_pipeline.records.stored import version_manifest
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.stages.arms import Arms, load_arms
from delift_pipeline.stages.version_model import with_version_template

if TYPE_CHECKING:
    from delift_pipeline.lineage.tracking import Tracker
    from delift_pipeline.stages.judge import JudgeSetup


class StoreResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """The home, which stores versions, scores, kernels, subsets, adapters and reports.

    Assets write their files themselves. An I/O manager handles single Python values, which shards,
    memory-mapped kernels and adapter folders are not.
    """

    home: str = ""
    """The home's folder. Empty means $DELIFT_HOME, else ./delift_home."""

    def open(self) -> Home:
        """Return the home."""
        return Home.at(self.home or None)

    def arms(self) -> Arms:
        """Load the home's arms: its own `arms.yaml`, else the package's."""
        return load_arms(self.open())


URI_VARIABLE, EXPERIMENT_VARIABLE = "DELIFT_TRACKING_URI", "DELIFT_EXPERIMENT"
DEFAULT_EXPERIMENT = "delift"


class TrackingResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """MLflow, in the home or on a server. It is opened when something is logged.

    MLflow's own `MLFLOW_TRACKING_URI` is not read. Logged data contains the texts of records, and
    it is sent to a server only if a user named the server for this purpose.
    """

    uri: str = ""
    """A tracking server such as http://host:5000. Empty means $DELIFT_TRACKING_URI, else the home's
    own store."""
    experiment: str = ""
    """The MLflow experiment of the project. Empty means $DELIFT_EXPERIMENT, else `delift`."""
    enabled: bool = True
    """Whether runs are tracked."""

    def tracker(self, home: Home) -> "Tracker | None":
        """Return the tracker for a home, or None if tracking is off.

        Raises:
            InputError: the address of the server is not http or https.
        """
        from delift_pipeline.lineage.tracking import Tracker

        if not self.enabled:
            return None
        uri = self.uri or os.environ.get(URI_VARIABLE) or None
        if uri and not uri.startswith(("http://", "https://")):
            raise InputError(
                f"{uri!r} is not a tracking server. Give http://host:port or https://host, or "
                "leave `uri` empty for the home's own store.",
                field="tracking.uri",
            )
        name = self.experiment or os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
        return Tracker(home, uri, name, lazy=True)


class ComputeResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """Device, engine, threads and batches. They change results only within the stated bounds."""

    device: str = ""
    """auto, cpu, cuda or cuda:N. Empty means auto."""
    device_map: str = ""
    """Spread one model over several GPUs and memory: auto, balanced, balanced_low_0 or sequential
    (engine transformers). Empty means one device."""
    threads: int = Field(default=0, ge=0)
    """CPU threads. 0 means PyTorch's default."""
    batch_tokens: int = Field(default=0, ge=0)
    """Maximal number of target tokens in one batch. 0 means the device's default."""
    memory_limit: float = Field(default=0, ge=0)
    """GiB that scoring uses in addition to the loaded model. 0 means 1.5 on a CPU and four fifths
    of the free memory on a GPU."""
    in_flight: int = Field(default=0, ge=0)
    """Demonstrations that share batches. 0 means 1 on a CPU and 4 on a GPU."""
    engine: str = ""
    """transformers, vllm (if installed; see docs/vllm.md) or naive, the reference. Empty means the
    preset's engine, else transformers."""
    tensor_parallel_size: int = Field(default=0, ge=0)
    """GPUs that vLLM splits a model over. 0 means the preset's number."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM uses."""
    workers: int = Field(default=1, ge=1)
    """Processes that score one plan together. Each uses GPUs of its own."""

    def model_settings(self) -> dict[str, Any]:
        """Return these settings by the names of `ModelOptions`; None means the model's default."""
        return {name: getattr(self, name) or None for name in ComputeResource.model_fields}


MODEL_VARIABLE = "DELIFT_MODEL"


class LanguageModelResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """The model and the settings that decide scores. A step loads the model when it needs it."""

    model: str = ""
    """A local folder, a hub id, preset:NAME (docs/models.md), or `demo`. Empty means the model that
    the version was ingested with, else $DELIFT_MODEL. Weights have to be safetensors."""
    revision: str = ""
    """Hub revision. Empty means the newest."""
    template: str = ""
    """Prompt template: auto, plain, paper, world, chat (the model's own) or a YAML file. Empty
    means the version's, else the preset's, else auto: chat if the model has a chat template that
    works, else plain."""
    window: int = Field(default=0, ge=0)
    """Tokens in one sequence. 0 means the model's window, at most 2,048."""
    dtype: str = ""
    """float32, bfloat16 or float16. Empty means the preset's, else float32."""
    load_in: str = ""
    """4bit or 8bit weights with bitsandbytes. Empty means weights in `dtype`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""

    def options(self, home: Home, version: str, compute: ComputeResource) -> ModelOptions:
        """Return the options for one version: this resource's, else the version's own.

        Raises:
            InputError: no model is named anywhere, or a setting is out of range.
        """
        own = version_manifest(home, version).details
        stored = model_path(home, own["model"]) if own.get("model") and not self.model else None
        model = self.model or stored or os.environ.get(MODEL_VARIABLE)
        if not model:
            raise InputError(
                f"version {version} was ingested without a model, and none is set. Pass --model, "
                f"or set ${MODEL_VARIABLE} or `model` of the resource language_model.",
                field="model",
            )
        settings = {
            name: getattr(self, name) or None for name in LanguageModelResource.model_fields
        }
        options = read_options({**settings, "model": model, **compute.model_settings()})
        return options if self.template else with_version_template(home, version, options)


class EmbedderResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """The embedder of prompts, which finds each record's neighbours."""

    name: str = ""
    """tfidf, minilm (all-MiniLM-L6-v2, installed with the package), or a sentence-transformers
    folder or hub id. Empty means `plan.embedder` of arms.yaml."""

    def apply_to(self, arms: Arms) -> Arms:
        """Return the arms with this embedder in their plan options, if one is named."""
        if not self.name:
            return arms
        return replace(arms, plan=arms.plan.model_copy(update={"embedder": self.name}))


class JudgeResource(dg.ConfigurableResource, use_attribute_docstrings=True):
    """A language model that scores answers from 1 to 5 (docs/evaluation.md). Off by default."""

    model: str = ""
    """The judge's name at the endpoint. Without an endpoint, a model folder or hub id. Empty means
    that answers are not judged."""
    endpoint: str = ""
    """An OpenAI-compatible address such as http://127.0.0.1:8000/v1."""
    api_key_variable: str = "DELIFT_JUDGE_API_KEY"
    """The environment variable that holds the endpoint's key."""
    mode: str = "single"
    """single: one score for all eight dimensions. dimensions: one score for each."""
    scoring: str = "written"
    """written: the score that the judge writes. expected: the digits' probability-weighted mean."""
    least_mass: float = 0.5
    """With scoring `expected`: the least total probability of the digits."""
    max_tokens: int = 512
    """Maximal length of a written judgement, in tokens."""
    parallel: int = 4
    """Requests at the same time."""
    device: str = "auto"
    """The device of a judge that runs on this machine."""

    def judge_setup(self, home: Home) -> "JudgeSetup | None":
        """Return the judge for a home's answers, or None if there is none.

        Raises:
            InputError: a setting is out of range.
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
