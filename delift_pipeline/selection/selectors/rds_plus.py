"""RDS+: records whose hidden states are most similar to those of the targets.

    h_i = sum_t t h_it / (1 + ... + T_i), to unit length
    score_j = max_{i in targets} cos(h_i, h_j)

where h_it are the last hidden states of prompt and answer, and the targets are those of one task.
Several tasks pick in turn, each its best record that is not picked yet. With `queries: round_robin`
the targets of a task do the same, each with its own cosines. Cost: one forward pass per record and
target, without logits; with turns of targets also 8 bytes per record and target. Source: Ivison et
al. 2025 (arXiv 2503.01807), who find it better than all more expensive selectors at scale. Within
one task their code lets the targets take turns, and their faster variant ranks by the greatest
cosine, as here by default. A target from the pool is not compared with itself.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from delift_pipeline.scoring.neighbours import COSINE_DECIMALS
from delift_pipeline.selection.embedding import hidden_states, record_texts
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import (
    TARGET_SHARE,
    TargetSet,
    rank_by_order,
    rank_by_score,
    refuse_auto,
    take_turns,
    target_set,
    tasks_of,
)
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits

_CHUNK = 4096


class RdsPlusOptions(NoOptions):
    """The options of `rds_plus`.

    Attributes:
        target_share: Share of the pool that serves as target set if the stage has none.
        tasks: With `round_robin` the targets' tasks pick in turn; `max` takes all targets as one.
        queries: `max` ranks the records of a task by its best target. With `round_robin` the
            targets of a task pick in turn.
    """

    target_share: float = Field(default=TARGET_SHARE, gt=0, le=1)
    tasks: Literal["round_robin", "max"] = "round_robin"
    # Left out of a request at its default, so subsets made before this option are kept.
    queries: Literal["max", "round_robin"] = Field(
        default="max", exclude_if=lambda queries: queries == "max"
    )


class RdsPlusSelector(Selector):
    """Ranks by similarity to the targets of position-weighted hidden states."""

    name = "rds_plus"
    options_model = RdsPlusOptions
    traits = Traits(reads_model=True)
    default_needs = Needs(model=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: RdsPlusOptions
    ) -> Selection:
        """Rank the whole pool; texts beyond the window are cut in their middle.

        Raises:
            InputError: The budget is `auto`, and several tasks or targets pick in turn.
        """
        targets = target_set(inputs, seed, options.target_share)
        pool = inputs.pool.sort("record_id")
        ids = tuple(pool["record_id"])
        tasks = list(tasks_of(targets.records).values())
        if options.tasks == "max":
            tasks = [np.arange(targets.records.height)]
        if options.queries == "round_robin":
            refuse_auto(self.name, inputs)
            every = [np.array([target]) for target in range(targets.records.height)]
            order = take_turns(similarity_by_group(inputs, pool, targets, every), tasks)
            return rank_by_order(self.name, inputs, ids, order, budget, notes=targets.notes)
        scores = similarity_by_group(inputs, pool, targets, tasks)
        if len(tasks) == 1:
            return rank_by_score(self.name, inputs, ids, scores[:, 0], budget, notes=targets.notes)
        refuse_auto(self.name, inputs)
        order = take_turns(scores)
        return rank_by_order(self.name, inputs, ids, order, budget, notes=targets.notes)


def similarity_by_group(
    inputs: SelectionInputs, pool: pl.DataFrame, targets: TargetSet, groups: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the greatest cosine of each record to a target of each group, float32 [pool, groups].

    `groups` are positions of targets. A record's cosine with itself does not count. If a group has
    no other target, the value is -1.
    """
    both = pl.concat([pool, targets.records], how="diagonal_relaxed")
    states = hidden_states(record_texts(both), inputs.language_model, "hidden states")
    own, target_states = states[: pool.height], states[pool.height :]
    places = {record: place for place, record in enumerate(targets.ids)}
    target_of = np.array([places.get(record, -1) for record in pool["record_id"]])
    best = np.empty((pool.height, len(groups)), np.float32)
    for start in range(0, pool.height, _CHUNK):
        part = slice(start, start + _CHUNK)
        cosines = np.round(own[part] @ target_states.T, COSINE_DECIMALS)
        rows = np.flatnonzero(target_of[part] >= 0)
        cosines[rows, target_of[part][rows]] = -1
        for group, members in enumerate(groups):
            best[part, group] = cosines[:, members].max(axis=1)
    return best
