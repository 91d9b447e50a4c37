"""Who judges generated answers, where anyone does."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.steps.judge import Panel


class JudgeResource(dg.ConfigurableResource):
    """A language model that scores answers from 1 to 5 (docs/evaluation.md). Off by default."""

    model: str = Field(
        default="",
        description="The judge's name at the endpoint; without an endpoint a model folder or hub "
        "id. Empty: answers are not judged.",
    )
    endpoint: str = Field(
        default="", description="An OpenAI-compatible address such as http://127.0.0.1:8000/v1."
    )
    api_key_variable: str = Field(
        default="DELIFT_JUDGE_API_KEY",
        description="The environment variable that holds the endpoint's key.",
    )
    mode: str = Field(
        default="single",
        description="single: one score over eight dimensions; dimensions: each by itself.",
    )
    scoring: str = Field(
        default="written",
        description="written: the score the judge writes; expected: from the digits' "
        "log-probabilities.",
    )
    least_mass: float = Field(
        default=0.5, description="expected: least probability of the digits together."
    )
    max_tokens: int = Field(default=512, description="Longest written judgement, in tokens.")
    parallel: int = Field(default=4, description="Requests at a time.")
    device: str = Field(default="auto", description="Of a judge that runs here.")

    def panel(self, home: Home) -> "Panel | None":
        """The judge for a home's answers, or None where there is none.

        Raises:
            Refused: a setting is out of range.
        """
        if not self.model:
            return None
        from delift_pipeline.evaluation.judge.questions import read_judge_options
        from delift_pipeline.scoring.options import read_options
        from delift_pipeline.steps.judge import Panel

        given = self.model_dump(exclude={"endpoint", "device"})
        options = read_judge_options(given | {"endpoint": self.endpoint or None})
        here = {"model": self.model, "device": self.device}
        return Panel(home, options, None if self.endpoint else read_options(here))
