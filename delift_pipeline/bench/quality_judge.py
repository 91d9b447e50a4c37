"""A language model as judge of an experiment's answers, where one is named.

Replies are kept in the experiment's home under the judge's identity: the same answer to the same
question is asked about once, and an experiment that was killed goes on with what is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.evaluation.judge.questions import JudgeOptions, read_judge_options
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.evaluation.judge.judges import Judge
    from delift_pipeline.steps.judge import Panel

SCORE, SCORED = "judge", "judge_scored"
"""Metrics: the mean score from 1 to 5, and the share of answers whose reply holds one."""


@dataclass(frozen=True)
class Jury:
    """Who judges.

    Attributes:
        options: How answers are judged.
        model: The judge's model where it runs here; None for an endpoint.
    """

    options: JudgeOptions
    model: ModelOptions | None

    @classmethod
    def named(cls, model: str, endpoint: str | None, **how: Any) -> "Jury":
        """The judge of that name.

        Raises:
            Refused: a setting is out of range.
        """
        options = read_judge_options({"model": model, "endpoint": endpoint, **how})
        here = {"model": model, "threads": 1}
        return cls(options, None if endpoint else read_options(here))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the scores."""
        return {**self.options.identity, "mode": self.options.mode}

    def scores(self, folder: Path, samples: pl.DataFrame) -> Mapping[str, float]:
        """The mean score of a model's answers, and the share of them that has one.

        Args:
            folder: The experiment's.
            samples: record_id, instruction, input, reference and generated.

        Raises:
            DeliftError: a question was not answered; a second call asks it again.
        """
        from delift_pipeline.evaluation.judge.questions import questions_for
        from delift_pipeline.evaluation.judge.run import ask
        from delift_pipeline.steps.judge import Panel

        panel = Panel(Home.at(folder / "home"), self.options, self.model)
        questions = questions_for(samples, self.options)
        overall = ask(_judge(panel), questions, panel.folder).overall
        if overall.failed:
            reason = f"{overall.failed} of {samples.height} questions to the judge failed"
            raise DeliftError(f"{reason}: start the experiment again, and it goes on from here")
        found = {SCORED: overall.scored / samples.height}
        return found if overall.mean is None else {SCORE: overall.mean, **found}


@lru_cache(maxsize=1)
def _judge(panel: "Panel") -> "Judge":
    """The judge; one that runs here is loaded once a process."""
    return panel.judge()
