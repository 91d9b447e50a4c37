"""The selector that leaves nothing out."""

from pydantic import BaseModel

from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits


class FullSelector(Selector):
    """The whole pool in file order, whatever the budget."""

    name = "full"
    options_model = NoOptions
    traits = Traits(reference="whole")

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: BaseModel
    ) -> Selection:
        """Every record of the pool."""
        ranking = tuple(inputs.pool["record_id"])
        if budget == len(ranking):
            return Selection(self.name, ranking)
        note = f"full takes all {len(ranking):,} records, not the {budget:,} of the budget"
        return Selection(self.name, ranking, notes=(note,))
