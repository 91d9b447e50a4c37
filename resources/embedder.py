"""The sentence embedder that plans and reports use."""

import dagster as dg
from pydantic import Field


class EmbedderResource(dg.ConfigurableResource):
    """Embeds prompts for neighbour plans."""

    name: str = Field(
        default="",
        description="tfidf, minilm, or a sentence-transformers folder or hub id; "
        "empty takes the `plan.embedder` of arms.yaml.",
    )
