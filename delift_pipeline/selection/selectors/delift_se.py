"""The paper's comparison: its objectives on the similarity of embeddings, no model asked.

    S_ij = max(cos(e_i, e_j), 0),  S_ii = 1

FL, FLMI or FLCG by stage (formulas: `selection.objectives`). Source: DELIFT (SE) of Agarwal et al.
2025, who embed with sentence transformers; `tfidf` needs no model at all.
"""

from typing import Any

import polars as pl

from delift_pipeline.errors import DeliftError, Fault, Refused
from delift_pipeline.selection.embedding import MODEL, Similarities, similarities
from delift_pipeline.selection.objectives import (
    FL1MI,
    FL2MI,
    FLCG,
    FLMI,
    FacilityLocation,
    Objective,
    objective_of_random,
)
from delift_pipeline.selection.optimizers import lazy_greedy, order_of
from delift_pipeline.selection.options import ONLY_STAGE, EmbeddingOptions, Stage
from delift_pipeline.selection.result import Selection, reasons_of
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.utility.columns import as_columns

TARGET_OBJECTIVES = ("flmi", "fl1mi", "fl2mi")


class DeliftSeSelector(Selector):
    """FL, FLMI or FLCG on embedding similarity, diagonal kept."""

    name = "delift_se"
    options_model = EmbeddingOptions
    traits = Traits(reads_model=True, takes_embedder=True)

    def needs(self, stage: Stage, options: EmbeddingOptions) -> Needs:
        """No scores; the model where it embeds; D_E where the objective is conditional.

        Raises:
            Refused: the objective belongs to another stage.
        """
        objective = options.objective_of(stage)
        only = ONLY_STAGE.get(objective, stage)
        if only != stage:
            sentence = f"{objective} belongs to the stage {only}, not {stage}"
            raise Refused(Fault(sentence, field="objective"))
        return Needs(existing_records=objective == "flcg", model=options.embedder == MODEL)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: EmbeddingOptions
    ) -> Selection:
        """Maximise the stage's objective greedily over the whole pool.

        Raises:
            DeliftError: the objective reads a target set that was not given.
            Refused: the embedder cannot be loaded.
        """
        ids = tuple(sorted(inputs.pool["record_id"]))
        objective, kernel, rows = _objective(inputs, ids, options)
        ranking = lazy_greedy(objective, budget, order_of(ids), inputs.constraints(ids, budget))
        picks = [int(j) for j in ranking.picks]
        return Selection(
            selector=self.name,
            ranking=tuple(ids[j] for j in picks),
            gains=ranking.gains,
            reasons=reasons_of(as_columns(kernel), picks, rows, ids),
            objective=objective.name,
            value=float(ranking.gains.sum()),
            value_random=objective_of_random(objective, budget, seed),
        )


def _objective(
    inputs: SelectionInputs, ids: tuple[str, ...], options: EmbeddingOptions
) -> tuple[Objective, Any, tuple[str, ...]]:
    """The objective, the kernel it covers and the record_ids of that kernel's rows."""
    name = options.objective_of(inputs.stage)
    similar = _similar(inputs, options, with_target=name in TARGET_OBJECTIVES)
    own = similar.part(ids, ids)
    if name == "flcg":
        return FLCG(own, similar.part(ids, sorted(inputs.existing)), options.nu), own, ids
    if name not in TARGET_OBJECTIVES or inputs.target is None:
        return FacilityLocation(own), own, ids
    rows = tuple(inputs.target["record_id"])
    target = similar.part(rows, ids)
    if name == "fl2mi":
        return FL2MI(target, options.eta), target, rows
    return (FLMI if name == "flmi" else FL1MI)(own, target, options.eta), own, ids


def _similar(inputs: SelectionInputs, options: EmbeddingOptions, with_target: bool) -> Similarities:
    frame = inputs.records
    if with_target:
        if inputs.target is None:
            raise DeliftError("the target set's records were not given")
        both = pl.concat([frame, inputs.target], how="diagonal_relaxed")
        frame = both.unique("record_id", keep="first", maintain_order=True)
    return similarities(
        frame,
        options.embedder,
        dense_limit=options.dense_limit,
        neighbours=options.coverage_neighbours,
        model=inputs.model,
    )
