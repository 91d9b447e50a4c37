"""The language model that scores, and that is fine-tuned."""

import os

import dagster as dg
from pydantic import Field

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.records.stored import known_manifest
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.model_places import model_at
from resources.compute import ComputeResource

MODEL_VARIABLE = "DELIFT_MODEL"


class LanguageModelResource(dg.ConfigurableResource):
    """Which model, and what of it decides scores. Nothing is loaded until a step needs it."""

    model: str = Field(
        default="",
        description="A local folder, a hub id, preset:NAME (docs/models.md), or `demo`; empty "
        "takes the model the version was ingested with, else $DELIFT_MODEL. Safetensors only.",
    )
    revision: str = Field(default="", description="Hub revision; empty takes the newest.")
    template: str = Field(
        default="",
        description="Prompt template: plain, paper, world, chat (the model's own) or a YAML file; "
        "empty takes the version's own, else the preset's, else plain.",
    )
    window: int = Field(
        default=0,
        ge=0,
        description="Tokens in one sequence; 0 takes the model's own, at most 2,048.",
    )
    dtype: str = Field(
        default="",
        description="float32, bfloat16 or float16; empty takes the preset's, else float32.",
    )
    load_in: str = Field(
        default="",
        description="4bit or 8bit weights, by bitsandbytes; empty takes those of `dtype`.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether code that comes with the model may run."
    )

    def options(self, home: Home, version: str, compute: ComputeResource) -> ModelOptions:
        """The options for one version: this resource's, else the version's own.

        Raises:
            Refused: no model is named anywhere, or a setting is out of range.
        """
        own = known_manifest(home, version).details
        kept = model_at(home, own["model"]) if own.get("model") and not self.model else None
        model = self.model or kept or os.environ.get(MODEL_VARIABLE)
        if not model:
            raise Refused(
                Fault(
                    f"version {version} was ingested without a model and none is set: give --model "
                    f"(or ${MODEL_VARIABLE}, or the language_model resource's `model`)",
                    field="model",
                )
            )
        return read_options(
            {
                "model": model,
                "revision": self.revision or None,
                "template": self.template or own.get("template"),
                "window": self.window or None,
                "dtype": self.dtype or None,
                "load_in": self.load_in or None,
                "trust_remote_code": self.trust_remote_code,
                **compute.model_settings(),
            }
        )
