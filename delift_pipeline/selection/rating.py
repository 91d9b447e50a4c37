"""The tokens of a rating from 1 to 5, in any model's vocabulary."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from delift_pipeline.errors import Fault, Refused

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder

RATINGS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class RatingTokens:
    """How a rating is written after a prompt.

    Attributes:
        before: Token ids that stand before every rating (a blank, in some vocabularies), int32.
        ids: The one token of each rating, in order, int64 [5].
    """

    before: np.ndarray
    ids: np.ndarray


def rating_tokens(encoder: "Encoder") -> RatingTokens:
    """Find the tokens by which a model writes the ratings.

    A blank and the digit are tokenised, else the digit alone. Where all ratings begin with the same
    tokens and differ in the last alone, that one is the rating's.

    Raises:
        Refused: the vocabulary has no single token for each rating.
    """
    for blank in (" ", ""):
        written = [encoder.plain.ids(f"{blank}{rating}") for rating in RATINGS]
        alike = {tuple(ids[:-1].tolist()) for ids in written}
        last = {int(ids[-1]) for ids in written if len(ids)}
        if len(alike) == 1 and len(last) == len(RATINGS):
            ids = np.array([ids[-1] for ids in written], dtype=np.int64)
            return RatingTokens(written[0][:-1].astype(np.int32), ids)
    raise Refused(
        Fault(
            "its tokenizer has no single token for each of the ratings 1 to 5, so it cannot rate "
            "records; choose another model for selectit",
            field="model",
        )
    )
