"""Options of selectors, validated by pydantic before any work starts."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from delift_pipeline.core.errors import InputError
from delift_pipeline.kernel.block import UtilityForm

Stage = Literal["instruction_tuning", "task_specific", "continual"]
STAGES: tuple[Stage, ...] = ("instruction_tuning", "task_specific", "continual")

Scaling = Literal["clip", "min_max"]
Diagonal = Literal["mask", "keep"]
ObjectiveName = Literal["fl", "flmi", "fl1mi", "fl2mi", "flcg"]
Covers = Literal["prompts", "records"]
OptimizerName = Literal["naive", "lazy", "stochastic", "lazier", "blocked", "submodlib"]

STAGE_OBJECTIVE: dict[Stage, ObjectiveName] = {
    "instruction_tuning": "fl",
    "task_specific": "flmi",
    "continual": "flcg",
}

ONLY_STAGE: dict[ObjectiveName, Stage] = {
    "flmi": "task_specific",
    "fl1mi": "task_specific",
    "fl2mi": "task_specific",
    "flcg": "continual",
}
"""Objectives that read data of one stage, which the other stages do not have."""


def objective_at(stage: Stage, named: ObjectiveName | None) -> ObjectiveName:
    """Return the objective to maximise at a stage: the named one, or the stage's default.

    Raises:
        InputError: The named one needs a target set or existing records, which the stage lacks.
    """
    objective = named or STAGE_OBJECTIVE[stage]
    if (only := ONLY_STAGE.get(objective, stage)) != stage:
        reason = f"{objective} belongs to the stage {only}. Choose another for {stage}"
        raise InputError(reason, field="objective")
    return objective


class NoOptions(BaseModel):
    """The options of a selector without options, and the base class of all others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SelectorOptions(NoOptions):
    """The options of `delift`; the defaults are the paper's objectives, clipped and masked.

    Attributes:
        utility: `distance` (d without minus d with the demonstration), `kl` (summed log-probability
            gain) or `kl_mean` (the same per answer token).
        scaling: `clip` uses max(U, 0). `min_max` maps the least and the greatest utility of all
            blocks to 0 and 1 (as in the published code).
        diagonal: `mask` sets the utility of a record, or an exact copy, for itself to 0. `keep`
            keeps it (as in the published code).
        objective: None takes the stage's default: `fl`, `flmi` or `flcg`.
        eta: Weight of relevance to the target set (flmi, fl1mi, fl2mi).
        nu: Weight of what the existing records already cover (flcg).
        optimizer: `lazy`, `naive`, `stochastic`, `lazier` (its lazy form), `blocked`, or
            `submodlib` to cross-check.
        sample: Share of the candidates that `stochastic` and `lazier` compare in each step.
        pairs: `all` reads every pair of the pool, `neighbours` only near pairs. The pairs of the
            pool with the target set or with existing records are read in full in both cases.
        replay: Share of the picks replayed from the existing records (continual). The paper's
            method replays none.
    """

    utility: UtilityForm = "distance"
    scaling: Scaling = "clip"
    diagonal: Diagonal = "mask"
    objective: ObjectiveName | None = None
    eta: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    nu: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    optimizer: OptimizerName = "lazy"
    sample: float = Field(default=0.1, gt=0, le=1)
    pairs: Literal["all", "neighbours"] = "all"
    replay: float = Field(default=0.0, ge=0, lt=1)


class TrustedOptions(NoOptions):
    """The options of `delift_trusted`; the experiments in docs/results.md use the defaults.

    Attributes:
        embedder: Of the text that is covered, and of prompts for trust from agreement: `tfidf`,
            `minilm`, `model` (the language model's own hidden states), or a sentence-transformers
            folder or hub id.
        covers: The text whose similarity is coverage: `prompts`, or whole `records`.
        trust: `support` needs two passes a record and no pairs. `agreement` needs near pairs.
            `both` is their product.
        scale: Support in nats from which trust is 1.
        floor: For trust from agreement. A record whose neighbour weights (fourth powers of cosines)
            sum to less has trust 1, because too few near prompts can judge it. The default is one
            prompt of cosine .47. It was not tuned.
        eta: Weight of each pick's own relevance to the target set (task-specific).
        nu: Weight of the coverage that the existing records already give (continual).
        replay: Share of the picks replayed from the existing records (continual).
        dense_limit: Up to this many records every similarity is kept.
        coverage_neighbours: Beyond it, how many nearest records of each; all others count as 0.
    """

    embedder: str = Field(default="tfidf", min_length=1)
    # The three are left out of a request at their defaults, so subsets made before them are kept.
    covers: Covers = Field(default="records", exclude_if=lambda value: value == "records")
    trust: Literal["support", "agreement", "both"] = Field(
        default="agreement", exclude_if=lambda value: value == "agreement"
    )
    scale: float = Field(
        default=2.5, gt=0, allow_inf_nan=False, exclude_if=lambda value: value == 2.5
    )
    floor: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    eta: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    nu: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    replay: float = Field(default=0.2, ge=0, lt=1)
    dense_limit: int = Field(default=4000, ge=0)
    coverage_neighbours: int = Field(default=100, ge=1)


class EmbeddingOptions(NoOptions):
    """The options of `delift_se`: the paper's objectives on the similarity of embeddings.

    Attributes:
        embedder: Of whole records: `minilm`, `tfidf`, `model` (the language model's own hidden
            states), or a sentence-transformers folder or hub id.
        objective: None takes the stage's default: `fl`, `flmi` or `flcg`.
        eta: Weight of relevance to the target set (flmi, fl1mi, fl2mi).
        nu: Weight of the coverage that the existing records already give (flcg).
        dense_limit: Up to this many records every similarity is kept.
        coverage_neighbours: Beyond it, how many nearest records of each; all others count as 0.
    """

    embedder: str = Field(default="minilm", min_length=1)
    objective: ObjectiveName | None = None
    eta: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    nu: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    dense_limit: int = Field(default=4000, ge=0)
    coverage_neighbours: int = Field(default=100, ge=1)
