"""The longest answers, a simple baseline for other selectors.

    score_j = number of tokens (or characters) of y_j

Cost: only the tokenizer. Source: Xia et al. 2024 (arXiv 2410.09335), who find that token length is
the only score that is always better than random choice on pools of a million records.
"""

from typing import Literal

import numpy as np

from delift_pipeline.selection.options import NoOptions, Stage
from delift_pipeline.selection.ranking import rank_by_score
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits


class LengthOptions(NoOptions):
    """The options of `length`.

    Attributes:
        unit: `tokens` of the model's tokenizer, or `characters`, which need no model.
    """

    unit: Literal["tokens", "characters"] = "tokens"


class LengthSelector(Selector):
    """Ranks the longest answers first, also those that are too long to be scored."""

    name = "length"
    options_model = LengthOptions
    traits = Traits(reads_model=True)

    def needs(self, stage: Stage, options: LengthOptions) -> Needs:
        """Return the model, of which only the tokenizer is read, or nothing."""
        return Needs(model=options.unit == "tokens", only_tokenizer=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: LengthOptions
    ) -> Selection:
        """Rank by the length of the whole answer."""
        answers = inputs.pool["output"].to_list()
        if options.unit == "characters":
            lengths = [len(answer) for answer in answers]
        else:
            encodings = inputs.language_model.encoder.plain.encode(answers)
            lengths = [len(encoding) for encoding in encodings]
        ids = tuple(inputs.pool["record_id"])
        return rank_by_score(self.name, inputs, ids, np.array(lengths), budget)
