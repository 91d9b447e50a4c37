"""LESS: records whose gradients point in the direction of the targets' gradients.

    g_i     gradient of record i's mean loss per answer token, on LoRA weights, at checkpoint c
    G_j     the step that Adam would take on g_j alone, its moments those of checkpoint c
    I_j     = sum_c w_c mean_{i in task} cos(P G_j, P g_i)     w_c: learning rates, summing to 1
    score_j = max over the targets' tasks of I_j

P is a seeded Rademacher projection. The warm-up trains adapters on a seeded share of the pool and
stores weights and moments after each epoch. Targets have plain gradients. Cost: the warm-up, then a
forward and a backward pass and 2 x dims bytes of disk per record or target and checkpoint. Source:
Xia et al. 2024 (arXiv 2402.04333). Their code has epsilon inside the root and no bias correction,
one record per pass, and fixed tasks. Here many records share a pass (`training.gradients`), and any
target set works. A target from the pool is not compared with itself. The paper has adapters only on
q, k, v and o: name these in `target_modules` to do the same.

With `queries: round_robin` there is no mean. Tasks pick in turn, and so do the targets i within a
task: each picks, of the records not picked yet, the one with the greatest

    S_ij = sum_c w_c cos(P G_j, P g_i)

This also takes about 20 bytes of memory per record and target. Source: a comparison of targeted
selection (arXiv 2602.14696), in which the targets are one task.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.progress import Meter
from delift_pipeline.selection.language_model import Checkpoints, Example
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import (
    DECIMALS,
    TARGET_SHARE,
    WARM_UP,
    draw_share,
    rank_by_order,
    rank_by_score,
    refuse_auto,
    take_turns,
    target_set,
    tasks_of,
)
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits


class LessOptions(NoOptions):
    """The options of `less`. The defaults are the paper's, except `target_modules`.

    Attributes:
        target_share: Share of the pool that serves as target set if the stage has none.
        warmup_share: Share of the pool that the warm-up trains on.
        epochs: Epochs of the warm-up, with a checkpoint after each.
        learning_rate: Highest learning rate of the warm-up, which falls linearly.
        rank: Rank of the adapters.
        alpha: The adapters are scaled by alpha / rank.
        dropout: Dropout before the adapters, only in the warm-up.
        target_modules: Layers with adapters: `all-linear`, or names.
        dims: Dimensions of a projected gradient, a multiple of 64.
        queries: `mean` scores a record by its mean influence on a task. With `round_robin` the
            targets pick in turn, each by its own influences.
    """

    target_share: float = Field(default=TARGET_SHARE, gt=0, le=1)
    warmup_share: float = Field(default=0.05, gt=0, le=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    rank: int = Field(default=128, ge=1)
    alpha: float = Field(default=512, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    dims: int = Field(default=8192, ge=64, multiple_of=64)
    # Left out of a request at its default, so subsets made before this option are kept.
    queries: Literal["mean", "round_robin"] = Field(
        default="mean", exclude_if=lambda queries: queries == "mean"
    )


class LessSelector(Selector):
    """Ranks by influence on the targets, estimated from gradients of adapters."""

    name = "less"
    options_model = LessOptions
    traits = Traits(reads_model=True)
    default_needs = Needs(model=True, answers=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: LessOptions
    ) -> Selection:
        """Rank the records whose answer fits the window.

        Raises:
            DeliftError: No target or no record of the pool fits, or a gradient is not finite.
            InputError: The budget is `auto`, and targets pick in turn.
        """
        if options.queries == "round_robin":
            refuse_auto(self.name, inputs)
        targets = target_set(inputs, seed, options.target_share)
        model, gradients = inputs.language_model, inputs.gradients
        if gradients is None:
            raise DeliftError("less reads gradients, but the inputs have none")
        pool = gradients.examples(model, inputs.pool)
        target_examples = gradients.examples(model, targets.records)
        if not target_examples or not pool:
            what = "record of the pool" if target_examples else "target"
            raise DeliftError(f"no {what} fits the window, so less cannot rank any")
        ids = tuple(example.record_id for example in pool)
        fitting = inputs.pool.filter(pl.col("record_id").is_in(ids))
        chosen = draw_share(fitting, options.warmup_share, [seed, WARM_UP])
        checkpoints = gradients.warm_up(model, chosen, seed, options)
        count = len(checkpoints.learning_rates) * (len(pool) + len(target_examples))
        known = [example.record_id for example in target_examples]
        tasks = list(tasks_of(targets.records.filter(pl.col("record_id").is_in(known))).values())
        by_turns = options.queries == "round_robin"
        groups = [np.array([target]) for target in range(len(known))] if by_turns else tasks
        with model.progress.track("gradients", count, "records") as meter:
            influence = influences(checkpoints, pool, target_examples, groups, meter)
        if by_turns:
            order = take_turns(np.round(influence, DECIMALS), tasks)
            return rank_by_order(self.name, inputs, ids, order, budget, notes=targets.notes)
        best = influence.max(axis=1)
        return rank_by_score(self.name, inputs, ids, best, budget, notes=targets.notes)


def influences(
    checkpoints: Checkpoints,
    pool: Sequence[Example],
    targets: Sequence[Example],
    groups: Sequence[np.ndarray],
    meter: Meter,
) -> np.ndarray:
    """Return I_j on each group of targets, float64 [pool, groups].

    `pool` and `targets` are the examples that fit. `groups` are positions of targets.
    """
    places = {example.record_id: place for place, example in enumerate(targets)}
    target_of = np.array([places.get(example.record_id, -1) for example in pool])
    total = np.zeros((len(pool), len(groups)))
    rates = np.array(checkpoints.learning_rates)
    for number, weight in enumerate(rates / rates.sum()):
        features_of_targets = checkpoints.gradient_features(number, targets, meter)
        for part, features in checkpoints.step_features(number, pool, meter):
            means = mean_cosines(features, features_of_targets, groups, target_of[part])
            total[part] += weight * means
    return total


def mean_cosines(
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[np.ndarray],
    target_of: np.ndarray,
) -> np.ndarray:
    """Return the mean cosine of each record with the targets of each group, except with itself.

    Features, float [n, dims], and targets, float [m, dims], have unit rows. `target_of`, int [n],
    is the record's own position among the targets, or -1. The means are float64 [n, groups], and -1
    if a record is the only target of its group.
    """
    rows = features.astype(np.float32)
    own = np.flatnonzero(target_of >= 0)
    own_cosines = np.einsum("ij,ij->i", rows[own], targets[target_of[own]])
    means = np.empty((len(rows), len(groups)))
    for number, members in enumerate(groups):
        sums = (rows @ targets[members].sum(axis=0)).astype(np.float64)
        counts = np.full(len(rows), len(members))
        inside = np.isin(target_of[own], members)
        sums[own[inside]] -= own_cosines[inside]
        counts[own[inside]] -= 1
        means[:, number] = np.where(counts > 0, sums / np.maximum(counts, 1), -1)
    return means
