"""DELIFT (SE), a comparison in the paper: its objectives on the similarity of embeddings.

    S_ij = max(cos(e_i, e_j), 0),  S_ii = 1

FL, FLMI or FLCG by stage (formulas: `selection.objectives`). Source: Agarwal et al. 2025, who embed
with sentence transformers. `tfidf` needs no model at all.
"""

from dataclasses import replace

import polars as pl

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.selection.embedding import MODEL
from delift_pipeline.selection.objectives import build_objective, mean_random_value
from delift_pipeline.selection.optimizers import lazy_greedy
from delift_pipeline.selection.options import EmbeddingOptions, Stage, objective_at
from delift_pipeline.selection.ranking import Maximisation, maximise
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits

TARGET_OBJECTIVES = ("flmi", "fl1mi", "fl2mi")


class DeliftSeSelector(Selector):
    """Maximises FL, FLMI or FLCG on the similarity of embeddings, with the diagonal."""

    name = "delift_se"
    options_model = EmbeddingOptions
    traits = Traits(reads_model=True, takes_embedder=True)

    def needs(self, stage: Stage, options: EmbeddingOptions) -> Needs:
        """Return no scores, the model if it is the embedder, and D_E if the objective is `flcg`.

        Raises:
            InputError: The objective belongs to another stage.
        """
        objective = objective_at(stage, options.objective)
        return Needs(existing_records=objective == "flcg", model=options.embedder == MODEL)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: EmbeddingOptions
    ) -> Selection:
        """Maximise the stage's objective greedily over the whole pool.

        Raises:
            DeliftError: The objective reads a target set, and its records are missing.
            InputError: The embedder cannot be loaded.
        """
        part = coverage_part(inputs, tuple(sorted(inputs.pool["record_id"])), options)
        selection = maximise(self.name, inputs, [part], lazy_greedy, budget, seed)
        if len(selection.ranking) == budget:
            return selection
        # With tokens and `auto` the ranking is shorter; random subsets still have `budget` records.
        return replace(selection, value_random=mean_random_value(part.objective, budget, seed))


def coverage_part(
    inputs: SelectionInputs, ids: tuple[str, ...], options: EmbeddingOptions
) -> Maximisation:
    """Return the stage's objective on embeddings, with the candidates `ids`.

    Raises:
        DeliftError: The objective reads a target set, and its records are missing.
        InputError: The embedder cannot be loaded.
    """
    name, frame, target = objective_at(inputs.stage, options.objective), inputs.records, ()
    if name in TARGET_OBJECTIVES:
        if inputs.target is None:
            raise DeliftError("the target set's records are missing from the inputs")
        target = tuple(inputs.target["record_id"])
        both = pl.concat([frame, inputs.target], how="diagonal_relaxed")
        frame = both.unique("record_id", keep="first", maintain_order=True)
    similar = inputs.similarities(frame, options)
    existing = sorted(inputs.existing) if name == "flcg" else ()
    sides = (ids, ids), (target, ids), (ids, existing)
    kernels = (similar.submatrix(rows, columns) for rows, columns in sides)
    objective = build_objective(name, *kernels, eta=options.eta, nu=options.nu)
    return Maximisation(objective, target if name == "fl2mi" else ids, ids)
