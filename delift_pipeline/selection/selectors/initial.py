"""The base model as it is: nothing is selected and nothing trained.

    A = {}          cost: nothing          source: the row "Initial" of Agarwal et al. 2025

Its adapter changes no output, so that its row is the base model's in every report and table.
"""

from pydantic import BaseModel

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.selector import SelectionInputs, Selector, Traits


class InitialSelector(Selector):
    """No record, whatever the budget."""

    name = "initial"
    options_model = NoOptions
    traits = Traits(reference="base")

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: BaseModel
    ) -> Selection:
        """The empty subset.

        Raises:
            Refused: records are pinned, or quotas set, which an empty subset cannot keep.
        """
        if inputs.rules != Rules():
            said = "initial takes no record, so nothing can be pinned; choose another selector"
            raise Refused(Fault(said, field="selector"))
        return Selection(self.name, (), notes=("initial takes no record: it is the base model",))
