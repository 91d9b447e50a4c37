"""The selector that every other must beat."""

import numpy as np
from pydantic import BaseModel

from delift_pipeline.selection.optimizers import in_order
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits


class RandomSelector(Selector):
    """A seeded permutation of the records in order of record_id, cut at the budget.

    The order of the file does not matter, a smaller budget is a prefix, and no score is needed.
    """

    name = "random"
    options_model = NoOptions
    traits = Traits(reference="random")

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: BaseModel
    ) -> Selection:
        """The first `budget` records of the permutation drawn with `seed`."""
        ids = sorted(inputs.pool["record_id"])
        order = np.random.default_rng(seed).permutation(len(ids))
        picks = in_order(order, budget, inputs.constraints(ids, budget))
        return Selection(self.name, tuple(ids[number] for number in picks))
