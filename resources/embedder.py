"""The sentence embedder that neighbour plans use."""

from dataclasses import replace

import dagster as dg
from pydantic import Field

from delift_pipeline.arms import Arms


class EmbedderResource(dg.ConfigurableResource):
    """Embeds prompts for neighbour plans."""

    name: str = Field(
        default="",
        description="tfidf, minilm, or a sentence-transformers folder or hub id; "
        "empty takes `plan.embedder` of arms.yaml.",
    )

    def applied_to(self, arms: Arms) -> Arms:
        """The arms with this embedder in their plan options, where one is named."""
        if not self.name:
            return arms
        return replace(arms, plan=arms.plan.model_copy(update={"embedder": self.name}))
