"""Rank candidates with greedy selection on a kernel of your own."""

import numpy as np

from delift_pipeline.selection.objectives import FacilityLocation
from delift_pipeline.selection.optimizers import lazy_greedy

# Forty points in the plane; a kernel value says how well column j represents row i.
points = np.random.default_rng(0).random((40, 2))
distances = np.linalg.norm(points[:, None] - points[None, :], axis=2)
kernel = np.exp(-4 * distances)

ranking = lazy_greedy(FacilityLocation(kernel), budget=5, tie_order=np.arange(40))
covered = kernel[:, ranking.picks].max(axis=1).mean()
for rank, (pick, gain) in enumerate(zip(ranking.picks, ranking.gains, strict=True), start=1):
    print(f"{rank}. point {pick:2} adds {gain:.3f}")
print(f"five points cover {covered:.0%} of the others on average")
