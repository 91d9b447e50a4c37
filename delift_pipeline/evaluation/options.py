"""The options of evaluation, and what its metrics mean. This module does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from delift_pipeline.evaluation import text_metrics


@dataclass(frozen=True)
class Metric:
    """What a metric is called, what it means, and how an answer is scored.

    Attributes:
        heading: The title for a narrow table.
        meaning: One sentence for reports.
        generated: Whether the metric needs generated answers.
        compare: Scores one generated answer against its reference, or returns None if the metric
            does not apply. It is None for metrics that are not measured answer by answer.
    """

    title: str
    heading: str
    meaning: str
    better: Literal["lower", "higher"] = "higher"
    generated: bool = True
    compare: Callable[[str, str], float | None] | None = None

    def improvement(self, value: float, reference: float) -> float:
        """Return by how much `value` is better than `reference`, in the metric's own units."""
        return reference - value if self.better == "lower" else value - reference


METRICS: dict[str, Metric] = {
    "answer_loss": Metric(
        "answer loss",
        "loss",
        "mean negative log-probability per reference answer token (nats, end-of-text token "
        "included, teacher-forced), averaged over records",
        better="lower",
        generated=False,
    ),
    "exact_match": Metric(
        "exact match",
        "exact",
        "share of greedy answers equal to the reference once white space at the ends is stripped "
        "and runs of it are one space; letter case and punctuation count",
        compare=text_metrics.exact_match,
    ),
    "rouge1": Metric(
        "ROUGE-1", "R-1", "F1 of words shared with the reference, stemmed (rouge-score)"
    ),
    "rouge2": Metric(
        "ROUGE-2",
        "R-2",
        "F1 of pairs of neighbouring words shared with the reference, stemmed (rouge-score)",
    ),
    "rougeL": Metric(
        "ROUGE-L", "R-L", "F1 of the longest common subsequence of words, stemmed (rouge-score)"
    ),
    "embedding_similarity": Metric(
        "embedding similarity",
        "similar",
        "cosine of the sentence embeddings of answer and reference; an empty answer counts 0",
    ),
    "squad_exact_match": Metric(
        "exact match (SQuAD)",
        "squad EM",
        "share of answers equal to the reference in small letters, without punctuation and "
        "articles",
        compare=text_metrics.squad_exact_match,
    ),
    "squad_f1": Metric(
        "token F1 (SQuAD)",
        "squad F1",
        "F1 of the words shared with the reference, in small letters, without punctuation and "
        "articles",
        compare=text_metrics.squad_f1,
    ),
    "hotpotqa_f1": Metric(
        "token F1 (HotpotQA)",
        "hotpot F1",
        "as token F1 (SQuAD), but 0 where one of both is yes, no or noanswer and the other is not "
        "the same",
        compare=text_metrics.hotpotqa_f1,
    ),
    "choice_accuracy": Metric(
        "multiple choice",
        "choice",
        "share of questions whose right option's letter is the most likely one after the prompt; "
        "records that list no options are left out",
        generated=False,
    ),
    "final_answer": Metric(
        "final answer",
        "final",
        "share of answers whose number after the last #### equals the reference's; records whose "
        "reference has none are left out",
        compare=text_metrics.final_answer,
    ),
}
"""Every metric by name, in the order of tables.

A metric that compares an answer with its reference needs only an entry here. Older reports lack its
column and count as not measured in it.
"""

if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]

GENERAL: tuple[MetricName, ...] = (
    "answer_loss",
    "exact_match",
    "rouge1",
    "rougeL",
    "embedding_similarity",
)
"""The default metrics, which are meaningful on any dataset."""

Generation = Literal["greedy", "paper"]


class EvaluationOptions(BaseModel):
    """How a model is measured on the held-out set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: tuple[MetricName, ...] = Field(
        default=GENERAL, min_length=1, description="The metrics to compute."
    )
    engine: Literal["transformers", "vllm"] | None = Field(
        default=None,
        description="Which engine computes losses and generates answers; by default the engine of "
        "scoring (docs/evaluation.md). Greedy answers and losses do not depend on the engine.",
    )
    generation: Generation = Field(
        default="greedy",
        description="greedy, or paper: sampled at temperature 0.2 and min_p 0.1, 150 new tokens.",
    )
    seed: int = Field(default=0, ge=0, description="The seed of sampled answers.")
    in_context: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Also measure the base model with this many of the chosen records, the nearest "
        "to each question, as demonstrations (the paper uses 5); 0 skips this.",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest generated answer in tokens; by default the longest reference and a "
        "margin.",
    )
    max_new_tokens_cap: int = Field(
        default=512, ge=1, description="Upper limit of the default of max_new_tokens."
    )
    embedder: str = Field(
        default="minilm",
        description="minilm (all-MiniLM-L6-v2, installed with the package), or a "
        "sentence-transformers folder or hub id.",
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        description="Records in one forward pass; greedy results do not depend on it.",
    )
    target_tasks_only: bool = Field(
        default=True,
        description="In the task-specific stage, measure only on the held-out records of the "
        "target set's tasks, if there are any.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="How many held-out records are measured: the first ones."
    )

    @property
    def request(self) -> dict[str, Any]:
        """The options that decide the results: all but engine and batch size of greedy answers."""
        sampled = self.generation != "greedy"
        speed = set() if sampled else {"batch_size", "seed"}
        # Without a named engine the scoring engine is used, and scores do not depend on it.
        engine = {"engine"} if not sampled or self.engine is None else set()
        return self.model_dump(mode="json", exclude=speed | engine)

    @property
    def generates(self) -> bool:
        """Whether any metric needs generated answers."""
        return any(METRICS[name].generated for name in self.metrics)
