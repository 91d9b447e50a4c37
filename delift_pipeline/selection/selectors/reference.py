"""The reference selectors: random choice, the whole pool, and no record."""

from typing import Any

import numpy as np

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import rank_by_order
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits


class RandomSelector(Selector):
    """Ranks records by a seeded permutation of their sorted record_ids.

    The order of the file does not matter, a smaller budget is a prefix, and no score is needed.
    """

    name = "random"
    options_model = NoOptions
    traits = Traits(reference="random")

    def select(self, inputs: SelectionInputs, budget: int, seed: int, options: Any) -> Selection:
        """Return the first `budget` records of the permutation for `seed`."""
        ids = sorted(inputs.pool["record_id"])
        order = np.random.default_rng(seed).permutation(len(ids))
        return rank_by_order(self.name, inputs, ids, order, budget)


class FullSelector(Selector):
    """Selects the whole pool in file order, whatever the budget."""

    name = "full"
    options_model = NoOptions
    traits = Traits(reference="whole")

    def select(self, inputs: SelectionInputs, budget: int, seed: int, options: Any) -> Selection:
        """Return every record of the pool."""
        ranking = tuple(inputs.pool["record_id"])
        if budget == len(ranking):
            return Selection(self.name, ranking)
        note = f"full takes all {len(ranking):,} records and ignores the budget of {budget:,}"
        return Selection(self.name, ranking, notes=(note,))


class InitialSelector(Selector):
    """Selects no record, whatever the budget: the row "Initial" of Agarwal et al. 2025.

    Its adapter changes no output, so its row in reports and tables is that of the base model.
    """

    name = "initial"
    options_model = NoOptions
    traits = Traits(reference="base")

    def select(self, inputs: SelectionInputs, budget: int, seed: int, options: Any) -> Selection:
        """Return the empty subset.

        Raises:
            InputError: There are rules, which an empty subset cannot obey.
        """
        if inputs.rules != Rules():
            reason = "initial takes no record, so it cannot follow rules. Choose another selector"
            raise InputError(reason, field="selector")
        return Selection(self.name, (), notes=("initial takes no record: it is the base model",))
