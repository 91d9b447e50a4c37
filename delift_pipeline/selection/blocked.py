"""Lazy greedy that looks at many candidates at once, for processors with many lanes.

Single candidates leave an accelerator idle. Here the best former gains are computed anew by the
block, which changes nothing in the ranking: a pick is made only when its gain is fresh and no
former gain is above it.
"""

from typing import Any

import numpy as np

from delift_pipeline.errors import Refused
from delift_pipeline.selection.constraints import Constraints, Tracker
from delift_pipeline.selection.coverage import Coverage
from delift_pipeline.selection.objectives import Objective
from delift_pipeline.selection.optimizers import Phase, Ranking, ranked
from delift_pipeline.utility.columns import to_dense

BLOCK = 256


def blocked_greedy(
    objective: Objective,
    budget: int,
    tie_order: np.ndarray,
    constraints: Constraints | None = None,
    *,
    block: int = BLOCK,
    device: str | None = None,
) -> Ranking:
    """The ranking of `lazy_greedy`, gains computed by the block.

    Args:
        objective: A coverage objective where a device is named; left with its picks chosen.
        budget: Picks at most.
        tie_order: int [n], what ties are broken by.
        constraints: What is kept to.
        block: Candidates a block.
        device: A torch device such as `cuda`, whose memory holds the kernel; None computes where
            the objective does. Gains of a device may differ from others in their last digits, and
            so may picks whose gains do not differ by more.

    Raises:
        Refused: the budget or the constraints are not possible, or the objective has no tensors.
    """
    if device is None:
        return ranked(objective, budget, tie_order, constraints, lambda: _phase(block))
    if not isinstance(objective, Coverage):
        raise Refused(f"{objective.name} does not run on {device}: only coverage objectives do")
    there = TensorCoverage(objective, device, block)
    ranking = ranked(there, budget, tie_order, constraints, lambda: _phase(block))
    objective.reset()
    objective.add_all(ranking.picks)
    return ranking


def _phase(block: int) -> Phase:
    def phase(
        objective: Objective, candidates: np.ndarray, budget: int, tracker: Tracker
    ) -> Ranking:
        run = _Run(objective, candidates, tracker, block)
        while len(run.picks) < budget and run.pick():
            pass
        return Ranking(np.array(run.picks, np.int64), np.array(run.gains), run.computed)

    return phase


class _Run:
    """One greedy run: former gains of all candidates, and which of them are fresh."""

    def __init__(
        self, objective: Objective, candidates: np.ndarray, tracker: Tracker, block: int
    ) -> None:
        self._objective, self._tracker, self._block = objective, tracker, block
        self._candidates = candidates
        self._keys = np.full(len(candidates), np.inf)
        self._gains = np.zeros(len(candidates))
        self._seen = np.full(len(candidates), -1)
        self.picks: list[int] = []
        self.gains: list[float] = []
        self.computed = 0

    def pick(self) -> bool:
        """Make the next pick; False where none is allowed or none pays."""
        self._keys[~self._tracker.admissible(self._candidates)] = -np.inf
        while len(self._keys):
            best = int(np.argmax(self._keys))
            if self._keys[best] == -np.inf:
                return False
            if self._seen[best] == len(self.picks):
                return self._take(best)
            self._look(best)
        return False

    def _look(self, best: int) -> None:
        """Compute the gains of the greatest stale keys, the best of all among them."""
        stale = np.where(self._seen == len(self.picks), -np.inf, self._keys)
        size = min(self._block, len(stale))
        looked = np.argpartition(-stale, size - 1)[:size]
        looked = np.union1d(looked[stale[looked] > -np.inf], [best])
        columns = self._candidates[looked]
        self._gains[looked] = self._objective.gains(columns)
        self._keys[looked] = self._gains[looked] / self._tracker.scale[columns]
        self._seen[looked] = len(self.picks)
        self.computed += len(looked)

    def _take(self, best: int) -> bool:
        gain, j = float(self._gains[best]), int(self._candidates[best])
        if self.picks and gain < self._tracker.constraints.stop * self.gains[0]:
            return False
        self._keys[best] = -np.inf
        self._objective.add(j)
        self._tracker.spend(j)
        self.picks.append(j)
        self.gains.append(gain)
        return True


class TensorCoverage:
    """A coverage objective on a torch device: gains of a block of columns in one operation.

    Args:
        objective: What is moved; its chosen set is not.
        device: A torch device.
        block: Columns an operation; shorter blocks are padded, so that all sums run alike.

    Raises:
        Refused: the device is not there.
    """

    def __init__(self, objective: Coverage, device: str, block: int = BLOCK) -> None:
        import torch

        self._torch, self.name, self.n = torch, objective.name, objective.n
        self._objective, self._block = objective, block
        try:
            self._device = torch.device(device)
            # Columns of the kernel are rows here, side by side in memory.
            self._kernel = torch.from_numpy(to_dense(objective.kernel).T).to(self._device)
        except RuntimeError as error:
            raise Refused(f"the device {device} cannot be used: {error}") from error
        self.reset()

    def _moved(self, values: np.ndarray) -> Any:
        return self._torch.from_numpy(np.array(values, np.float64)).to(self._device)

    def reset(self) -> None:
        """Choose nothing."""
        self._objective.reset()
        self._state = self._moved(self._objective.state)

    def gain(self, j: int) -> float:
        """How much adding column j would raise the value."""
        return float(self.gains(np.array([j]))[0])

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """`gain` of several columns, float64."""
        parts = [
            self._block_lifts(candidates[start : start + self._block])
            for start in range(0, len(candidates), self._block)
        ]
        return np.concatenate([np.zeros(0), *parts]) + self._objective.bonus[candidates]

    def _block_lifts(self, candidates: np.ndarray) -> np.ndarray:
        padded = np.resize(candidates, self._block)
        values = self._kernel[self._torch.from_numpy(padded).to(self._device)].double()
        cap, weights = self._objective.cap, self._objective.weights
        if self._objective.saturating:
            lift = self._torch.minimum(values, self._state)
        else:
            values = values if cap is None else self._torch.minimum(values, self._moved(cap))
            lift = (values - self._state).clamp_(min=0)
        if weights is not None:
            lift *= self._moved(weights)
        return lift.sum(dim=1).cpu().numpy()[: len(candidates)]

    def add(self, j: int) -> None:
        """Take column j into the chosen set."""
        self._objective.add(j)
        self._state = self._moved(self._objective.state)

    @property
    def value(self) -> float:
        """The value of the chosen set."""
        return self._objective.value
