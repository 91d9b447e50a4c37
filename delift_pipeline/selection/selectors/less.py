"""LESS: records whose gradients point where the targets' do.

    g_i     gradient of record i's mean loss per answer token, on LoRA weights, at checkpoint c
    G_j     the step that Adam would take on g_j alone, its moments those of checkpoint c
    I_j     = sum_c w_c mean_{i in task} cos(P G_j, P g_i)     w_c: learning rates, summing to 1
    score_j = max over the targets' tasks of I_j

P is a seeded Rademacher projection. The warm-up trains adapters on a seeded share of the pool and
keeps weights and moments at the end of each epoch; targets have plain gradients. Cost: the warm-up,
then a forward and a backward pass a record, target and checkpoint, and 2 x dims bytes of disk for
each. Source: Xia et al. 2024 (arXiv 2402.04333). Their code has epsilon inside the root and no bias
correction, one record a pass, and its tasks written into it; here many records share a pass
(`training.gradients`) and any target set will do. A target drawn from the pool says nothing of
itself. The paper's adapters are on q, k, v and o alone: name them in `target_modules` for that.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from delift_pipeline.errors import DeliftError
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.scored import by_score
from delift_pipeline.selection.selector import Needs, SelectionInputs
from delift_pipeline.selection.target_set import (
    TARGET_SHARE,
    WARM_UP,
    drawn,
    target_set,
    tasks_of,
)
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.selection.influence import Features
    from delift_pipeline.selection.language_model import LanguageModel
    from delift_pipeline.training.batches import Example
    from delift_pipeline.training.warm_up import Checkpoint, WarmUp

METHOD = 1
"""Counted up when the meaning of a stored gradient changes."""
RECORDS_PER_STEP = 128
RECORDS_PER_PASS = 8
WARM_UP_RATIO = 0.03


class LessOptions(BaseModel):
    """The options of `less`; the defaults are the paper's, but for `target_modules`.

    Attributes:
        target_share: Share of the pool that stands for the target set where the stage has none.
        warmup_share: Share of the pool that the warm-up trains on.
        epochs: Epochs of the warm-up: that many checkpoints.
        learning_rate: Its highest learning rate, falling linearly.
        rank: Rank of its adapters.
        alpha: Their scale is alpha divided by rank.
        dropout: Dropout in front of them, in the warm-up alone.
        target_modules: Layers with adapters: `all-linear`, or names.
        dims: Numbers a gradient is projected to, a multiple of 64.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_share: float = Field(default=TARGET_SHARE, gt=0, le=1)
    warmup_share: float = Field(default=0.05, gt=0, le=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    rank: int = Field(default=128, ge=1)
    alpha: float = Field(default=512, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dims: int = Field(default=8192, ge=64, multiple_of=64)

    def training(self, records: int) -> TrainingOptions:
        """How the warm-up trains on so many records: a step is 128 of them, or all."""
        per_pass = min(RECORDS_PER_PASS, records)
        accumulation = -(-min(RECORDS_PER_STEP, records) // per_pass)
        steps = -(-records * self.epochs // (per_pass * accumulation))
        return TrainingOptions(
            method="lora",
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=self.target_modules,
            learning_rate=self.learning_rate,
            schedule="linear",
            floor=0.0,
            warmup_steps=int(WARM_UP_RATIO * steps),
            batch_size=per_pass,
            accumulation=accumulation,
            epochs=float(self.epochs),
        )


class LessSelector:
    """Greatest influence on the targets, by low-rank gradients."""

    name = "less"
    options_model: type[BaseModel] = LessOptions

    def needs(self, stage: Stage, options: LessOptions) -> Needs:
        """The model; no pair scores."""
        return Needs(model=True, answers=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: LessOptions
    ) -> Selection:
        """Rank the records whose answer fits the window.

        Raises:
            DeliftError: no target or no record of the pool fits, or a gradient is not finite.
        """
        targets = target_set(inputs, seed, options.target_share)
        model = inputs.language_model
        pool = _examples(model, inputs.pool)
        wanted = _examples(model, targets.records)
        if not wanted or not pool:
            what = "record of the pool" if wanted else "target"
            raise DeliftError(f"no {what} fits the window, so less cannot rank any")
        influence = influences(model, inputs.pool, pool, targets.records, wanted, seed, options)
        ids = tuple(example.record_id for example in pool)
        best = influence.max(axis=1)
        return by_score(self.name, inputs, ids, best, budget, notes=targets.notes)


def influences(
    model: "LanguageModel",
    records: pl.DataFrame,
    pool: "Sequence[Example]",
    targets: pl.DataFrame,
    wanted: "Sequence[Example]",
    seed: int,
    options: LessOptions,
) -> np.ndarray:
    """I_j by task, float64 [pool, tasks].

    Args:
        model: The model.
        records: The pool's records.
        pool: Those that fit, tokenised, sorted by record_id.
        targets: The targets' records.
        wanted: Those that fit, tokenised, sorted by record_id.
        seed: Decides the warm-up and the projection.
        options: The options.
    """
    from delift_pipeline.selection.influence import mean_cosines

    places = {example.record_id: place for place, example in enumerate(wanted)}
    itself = np.array([places.get(example.record_id, -1) for example in pool])
    known = targets.sort("record_id").filter(pl.col("record_id").is_in(list(places)))
    groups = list(tasks_of(known).values())
    warm_up = _warm_up(model, records, pool, seed, options)
    total = np.zeros((len(pool), len(groups)))
    weights = _weights(warm_up.checkpoints)
    count = len(weights) * (len(pool) + len(wanted))
    with model.progress.track("gradients", count, "records") as meter:
        for weight, checkpoint in zip(weights, warm_up.checkpoints, strict=True):
            plain, adam = _features(model, warm_up, checkpoint, seed, options)
            aims = plain.all(wanted, meter)
            for part, features in adam.shards(pool, meter):
                cosines = mean_cosines(features, aims, groups, itself[part])
                total[part] += weight * cosines
    return total


def _examples(model: "LanguageModel", records: pl.DataFrame) -> "list[Example]":
    from delift_pipeline.training.batches import encode_examples

    return encode_examples(model.encoder, records.sort("record_id"))[0]


def _warm_up(
    model: "LanguageModel",
    records: pl.DataFrame,
    pool: "Sequence[Example]",
    seed: int,
    options: LessOptions,
) -> "WarmUp":
    from delift_pipeline.training.warm_up import WarmUp

    fitting = records.filter(pl.col("record_id").is_in([e.record_id for e in pool]))
    chosen = drawn(fitting, options.warmup_share, [seed, WARM_UP])
    training = options.training(chosen.height)
    request = [METHOD, training.request, seed, chosen["record_id"].to_list()]
    folder = model.gradients / digest_json(request)
    options_of_model = model.options.model_copy(update={"engine": "transformers"})
    return WarmUp(training, options_of_model, chosen, seed, folder, model.progress, model.claim)


def _weights(checkpoints: "Sequence[Checkpoint]") -> np.ndarray:
    """Learning rates of the checkpoints, made to sum to 1."""
    rates = np.array([checkpoint.learning_rate for checkpoint in checkpoints])
    return rates / rates.sum()


def _features(
    model: "LanguageModel",
    warm_up: "WarmUp",
    checkpoint: "Checkpoint",
    seed: int,
    options: LessOptions,
) -> "tuple[Features, Features]":
    """The targets' features, of plain gradients, and the pool's, of Adam's steps."""
    from delift_pipeline.selection.influence import Features, Update
    from delift_pipeline.training.gradients import RecordGradients

    @cache
    def gradients() -> RecordGradients:
        return RecordGradients(warm_up.at(checkpoint))

    def plain() -> Update:
        return lambda found: found

    @cache
    def adam() -> Update:
        return warm_up.moments(checkpoint, gradients().names).update

    named = digest_json([METHOD, checkpoint.digest, options.dims, seed])
    folder: Path = checkpoint.folder.parent / f"features-{named}"
    return (
        Features(folder / "plain", options.dims, seed, gradients, plain),
        Features(folder / "adam", options.dims, seed, gradients, adam),
    )
