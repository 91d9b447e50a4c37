"""The library submodlib as a check of our own optimizers.

It receives row-ordered float32 arrays, because it silently misreads column-ordered and strided
ones. It keeps several copies of a dense kernel in memory, so use it only for small pools.
"""

from typing import Any

import numpy as np

from delift_pipeline.core.errors import InputError
from delift_pipeline.kernel.columns import Columns, to_dense
from delift_pipeline.selection import objectives
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.optimizers import Ranking


def submodlib_greedy(
    objective: objectives.Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
) -> Ranking:
    """Run submodlib's lazy greedy on the same objective. It breaks ties in an order of its own.

    Raises:
        InputError: submodlib has no such function, the budget is above n, or there are constraints.
    """
    if constraints is not None:
        raise InputError("submodlib cannot obey constraints. Choose another optimizer")
    if budget < 0 or budget > objective.n:
        raise InputError(f"the budget is {budget:,} picks. It must be from 0 to {objective.n:,}")
    function = _submodlib_function(objective)
    # It refuses a budget of n, so the last candidate is added below.
    picked = function.maximize(
        min(budget, objective.n - 1), optimizer="LazyGreedy", show_progress=False
    )
    picks, gains = [int(j) for j, _ in picked], [float(gain) for _, gain in picked]
    left = set(range(objective.n)) - set(picks) if budget == objective.n else ()
    for j in sorted(left, key=tie_order.__getitem__):
        before = objectives.evaluate(objective, picks)
        picks.append(j)
        gains.append(objectives.evaluate(objective, picks) - before)
    return Ranking(np.array(picks, dtype=np.int64), np.array(gains, dtype=np.float64))


def _submodlib_function(objective: objectives.Coverage) -> Any:
    import submodlib

    # Its factors are annotated as int, but any number works.
    library: Any = submodlib
    n, kernel = objective.n, _row_major(objective.kernel)
    if objective.weights is not None:
        raise InputError("submodlib has no weights per target. Choose another optimizer")
    if isinstance(objective, objectives.FL1MI | objectives.FLCG) and len(kernel) != n:
        shape = objective.kernel.shape
        raise InputError(f"the kernel has shape {shape}. submodlib needs a square one here")
    match objective:
        case objectives.FacilityLocation() | objectives.FLMI():
            if isinstance(objective, objectives.FLMI):
                # It has no FLMI, but a bonus equals one more row with a value in one column.
                kernel = np.vstack([kernel, np.diag(objective.bonus)]).astype(np.float32)
            shape = {"mode": "dense", "separate_rep": True, "n_rep": len(kernel)}
            return library.FacilityLocationFunction(n, **shape, sijs=kernel)
        case objectives.FL1MI():
            query = np.ascontiguousarray(_row_major(objective.target).T)
            factors = {"query_sijs": query, "magnificationEta": objective.eta}
            mutual = library.FacilityLocationMutualInformationFunction
            return mutual(n, query.shape[1], data_sijs=kernel, **factors)
        case objectives.FL2MI():
            query = np.ascontiguousarray(kernel.T)
            mutual = library.FacilityLocationVariantMutualInformationFunction
            return mutual(n, query.shape[1], query_sijs=query, queryDiversityEta=objective.eta)
        case objectives.FLCG():
            private = _row_major(objective.existing)
            factors = {"private_sijs": private, "privacyHardness": objective.nu}
            conditional = library.FacilityLocationConditionalGainFunction
            return conditional(n, private.shape[1], data_sijs=kernel, **factors)
    raise InputError(f"submodlib has no function {objective.name}. Choose another optimizer")


def _row_major(kernel: Columns) -> np.ndarray:
    return np.ascontiguousarray(to_dense(kernel), dtype=np.float32)
