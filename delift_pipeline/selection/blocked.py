"""Lazy greedy that looks at many candidates at once, for processors with many lanes."""

import numpy as np

from delift_pipeline.core.errors import Refused
from delift_pipeline.kernel.columns import to_dense
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.objectives import Coverage
from delift_pipeline.selection.optimizers import Ranking, ranked, sampling

BLOCK = 256


def blocked_greedy(
    objective: Coverage,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
    *,
    block: int = BLOCK,
    device: str | None = None,
) -> Ranking:
    """The ranking of `lazy_greedy`, gains computed by the block for processors with many lanes.

    Args:
        objective: Left with its picks chosen.
        budget: Picks at most.
        tie_order: int [n], what ties are broken by.
        constraints: What is kept to.
        block: Candidates a block.
        device: A torch device such as `cuda`, whose memory holds the kernel; None computes where
            the objective does. Gains of a device may differ from others in their last digits, and
            so may picks whose gains do not differ by more.

    Raises:
        Refused: the budget or the constraints are not possible, or the device is not there.
    """
    if device is None:
        return ranked(objective, budget, tie_order, constraints, lambda: sampling(block))
    there = TensorCoverage(objective, device, block)
    ranking = ranked(there, budget, tie_order, constraints, lambda: sampling(block))
    objective.reset()
    objective.add_all(ranking.picks)
    return ranking


class TensorCoverage(Coverage):
    """A coverage objective on a torch device: gains of a block of columns in one operation.

    Args:
        objective: What is moved; it is left as it is.
        device: A torch device.
        block: Columns an operation; shorter blocks are padded, so that all sums run alike.

    Raises:
        Refused: the device is not there.
    """

    def __init__(self, objective: Coverage, device: str, block: int = BLOCK) -> None:
        import torch

        self.__dict__.update(objective.__dict__)
        self.name, self.engine, self._block = objective.name, None, block
        try:
            self._device = torch.device(device)
            # Columns of the kernel are rows here, side by side in memory.
            self._kernel = torch.from_numpy(to_dense(objective.kernel).T).to(self._device)
        except RuntimeError as error:
            raise Refused(f"the device {device} cannot be used: {error}") from error
        self.reset()

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value."""
        return float(self.gains(np.array([j]))[0])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        import torch

        state = torch.from_numpy(self.state).to(self._device)
        cap, weights = (
            None if values is None else torch.from_numpy(values).to(self._device)
            for values in (self.cap, self.weights)
        )
        lifts = [np.zeros(0)]
        for start in range(0, len(candidates), self._block):
            part = candidates[start : start + self._block]
            padded = torch.from_numpy(np.resize(part, self._block)).to(self._device)
            values = self._kernel[padded].double()
            values = values if cap is None else torch.minimum(values, cap)
            lift = (values - state).clamp_(min=0)
            lift = lift if weights is None else lift * weights
            lifts.append(lift.sum(dim=1).cpu().numpy()[: len(part)])
        return np.concatenate(lifts) + self.bonus[candidates]
