"""IFD, instruction-following difficulty: how little the instruction helps with the answer.

    IFD_i = ppl(y_i | x_i) / ppl(y_i)
          = exp(mean_t log p(y_it | y_i<t) - mean_t log p(y_it | x_i, y_i<t))

The greatest ratios below 1 come first: the answer is hard, but the instruction helps. From 1 on the
instruction hurts, for example because the answer does not belong to it. These records come last,
those nearest to 1 first, or are left out (`above_one: drop`, as published). Cost: two forward
passes per record. Source: Li et al. 2024 (arXiv 2308.12032). A small model ranks almost equally
(Superfiltering, arXiv 2402.00530). Both perplexities cover the same tokens, with end-of-text.
Without an instruction, the first token is predicted from begin-of-text, or else from end-of-text.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import polars as pl

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.selection.language_model import LanguageModel, begin_of_text
from delift_pipeline.selection.options import NoOptions
from delift_pipeline.selection.ranking import DECIMALS, rank_by_score
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits

ROWS = 1024
"""Records per scoring call; progress is shown after each."""


class IfdOptions(NoOptions):
    """The options of `ifd`.

    Attributes:
        above_one: `last` ranks records with a ratio of 1 or more after all others. `drop` leaves
            them out, as published, so the ranking may be shorter than the budget.
    """

    above_one: Literal["last", "drop"] = "last"


class IfdSelector(Selector):
    """Ranks by difficulty the records whose instruction helps with the answer."""

    name = "ifd"
    options_model = IfdOptions
    traits = Traits(reads_model=True)
    default_needs = Needs(model=True, answers=True)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: IfdOptions
    ) -> Selection:
        """Rank the records whose answer fits the window.

        Raises:
            DeliftError: No answer fits, or with `drop` the instruction helps with no answer.
        """
        ids, ratios = difficulties(inputs.language_model, inputs.pool)
        ratios = np.round(ratios, DECIMALS)
        helped = ratios < 1
        notes, known = (), len(ids)
        if hurt := int((~helped).sum()):
            what = "ranked last" if options.above_one == "last" else "left out"
            notes = (f"{hurt:,} records have a ratio of 1 or more and are {what}",)
        # For ratios from 1 on, 1 - ratio is at most 0, so they come last and the smallest first.
        scores = np.where(helped, ratios, 1 - ratios)
        if options.above_one == "drop":
            if not helped.any():
                raise DeliftError("the instruction helps with no answer, so ifd cannot rank any")
            rows = np.flatnonzero(helped)
            ids, scores = tuple(ids[row] for row in rows), scores[rows]
        dropped = known - len(ids)
        return rank_by_score(self.name, inputs, ids, scores, budget, notes=notes, dropped=dropped)


def difficulties(model: LanguageModel, pool: pl.DataFrame) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the record_ids that can be scored, sorted, and their ratios, float64."""
    from delift_pipeline.scoring.engine import Job
    from delift_pipeline.scoring.engines import engine_for

    engine = engine_for(model.scorer, model.progress)
    encoded = model.encoder.encode(pool.sort("record_id"))
    begin = begin_of_text(model.encoder)
    begin = begin if len(begin) else np.asarray([model.encoder.eos], dtype=np.int32)
    answers = [np.concatenate([begin, encoded.answer(row)]) for row in range(len(encoded))]
    # The same answers with `begin` instead of their prompts.
    alone = replace(
        encoded,
        head=np.empty(0, dtype=np.int32),
        target_tokens=np.concatenate([np.empty(0, dtype=np.int32), *answers]),
        target_starts=np.cumsum([0, *map(len, answers)], dtype=np.int64),
        prompt_lengths=np.full(len(encoded), len(begin), dtype=np.int32),
    )
    means = {}
    with model.progress.track("perplexities", 2 * len(encoded), "answers") as meter:
        for name, records, prefix in (
            ("instructed", encoded, encoded.prefix()),
            ("alone", alone, alone.head),
        ):
            parts = [np.zeros(0)]
            for start in range(0, len(records), ROWS):
                rows = np.arange(start, min(start + ROWS, len(records)))
                scores = engine.score(records, [Job(prefix, rows)])[0]
                starts = np.cumsum([0, *scores.lengths[:-1]], dtype=np.int64)
                sums = np.add.reduceat(scores.logprobs.astype(np.float64), starts)
                parts.append(sums / scores.lengths)
                meter.advance(len(rows))
            means[name] = np.concatenate(parts)
    return encoded.ids, np.exp(means["alone"] - means["instructed"])
