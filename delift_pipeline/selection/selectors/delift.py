"""DELIFT, the paper's selector: submodular objectives on the utility kernel."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.block import Block, Similarity, common_affine, duplicate_groups
from delift_pipeline.kernel.columns import Columns, materialise
from delift_pipeline.selection.objectives import FacilityLocation, build_objective
from delift_pipeline.selection.optimizers import (
    Optimizer,
    blocked_greedy,
    lazy_greedy,
    naive_greedy,
    stochastic_greedy,
)
from delift_pipeline.selection.options import SelectorOptions, Stage, objective_at
from delift_pipeline.selection.ranking import Maximisation, maximise
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits
from delift_pipeline.selection.submodlib_optimizer import submodlib_greedy

_SELF_BLOCKS = ("self", "neighbours")


class DeliftSelector(Selector):
    """Maximises FL, FLMI or FLCG on max(U, 0), by stage, diagonal masked (Agarwal et al. 2025).

    In the continual stage a share of the picks can be replayed from D_E (`replay`, 0 in the paper).
    Facility location over D_E on the same utilities ranks them, and every prefix has this share.
    """

    name = "delift"
    options_model = SelectorOptions
    traits = Traits(reads_scores=True, replays=True)

    def needs(self, stage: Stage, options: SelectorOptions) -> Needs:
        """Return the blocks that the objective reads.

        Raises:
            InputError: The objective needs a target set or existing records, which the stage lacks.
        """
        objective = objective_at(stage, options.objective)
        return Needs(
            "none" if objective == "fl2mi" else options.pairs,
            target_pairs=objective in ("flmi", "fl1mi", "fl2mi"),
            existing_pairs=objective == "flcg",
            replay_pairs=stage == "continual" and options.replay > 0,
        )

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: SelectorOptions
    ) -> Selection:
        """Maximise the stage's objective greedily over the scorable records.

        Raises:
            DeliftError: A block lacks records, or no record of the pool could be scored.
        """
        pool, existing = tuple(inputs.pool["record_id"]), inputs.existing
        blocks: dict[str, Block] = {}
        for name in self.needs(inputs.stage, options).blocks:
            block = inputs.block(name, options.utility)
            rows = {"target": block.rows, "replay": existing}.get(name, pool)
            columns = existing if name in ("existing", "replay") else pool
            blocks[name] = block.restrict(rows, columns)
        candidates = next(iter(blocks.values())).columns if blocks else ()
        if not candidates:
            raise DeliftError("no record of the pool has scores, so delift cannot rank any")
        kernels, details = _kernels(blocks, inputs, options)
        objective = build_objective(
            objective_at(inputs.stage, options.objective),
            kernels.get("self"),
            kernels.get("target"),
            kernels.get("existing"),
            eta=options.eta,
            nu=options.nu,
        )
        name = next(name for name in (*_SELF_BLOCKS, "target") if name in blocks)
        parts = [Maximisation(objective, blocks[name].rows, candidates)]
        if "replay" in blocks:
            old = blocks["replay"]
            parts.append(Maximisation(FacilityLocation(kernels["replay"]), old.rows, old.columns))
        greedy = _optimizer(options, seed)
        selection = maximise(self.name, inputs, parts, greedy, budget, seed, options.replay)
        return replace(
            selection,
            blocks={name: block.hash for name, block in blocks.items()},
            details=details | selection.details,
        )


def _kernels(
    blocks: dict[str, Block], inputs: SelectionInputs, options: SelectorOptions
) -> tuple[dict[str, Columns], dict[str, Any]]:
    """Return non-negative kernels by block (`neighbours` as `self`), and details of the scaling."""
    similarities = {}
    for name, block in blocks.items():
        groups = None
        # The rows and columns of these blocks are the same records.
        if name in (*_SELF_BLOCKS, "replay") and options.diagonal == "mask":
            group_of = duplicate_groups(inputs.records if name == "replay" else inputs.pool)
            rows, columns = (
                np.array([group_of[record] for record in ids], dtype=np.int64)
                for ids in (block.rows, block.columns)
            )
            groups = rows, columns
        similarities["self" if name in _SELF_BLOCKS else name] = (block.matrix, groups)
    details: dict[str, Any] = {"scaling": {"kind": options.scaling}}
    affine = None
    if options.scaling == "min_max":
        affine = common_affine(Similarity(matrix, None, g) for matrix, g in similarities.values())
        details["scaling"] |= {"low": affine.low, "high": affine.high}
    kernels = {
        name: materialise(Similarity(matrix, affine, groups))
        for name, (matrix, groups) in similarities.items()
    }
    return kernels, details


def _optimizer(options: SelectorOptions, seed: int) -> Optimizer:
    sampled = functools.partial(stochastic_greedy, seed=seed, sample=options.sample)
    optimizers: dict[str, Optimizer] = {
        "naive": naive_greedy,
        "lazy": lazy_greedy,
        "stochastic": sampled,
        "lazier": functools.partial(sampled, lazily=True),
        "blocked": blocked_greedy,
        "submodlib": submodlib_greedy,
    }
    return optimizers[options.optimizer]
