"""SelectIT: the model rates each record, and an uncertain rating counts less.

    p_k      probability of the rating k = 1..5 after a rating prompt, renormalised over the five
    token    S = b mean_{k != b} |p_b - p_k|,   b = argmax p        high for a certain, high rating
    sentence S = mean over the rating prompts / (1 + alpha std)     low if the prompts disagree
    model    S = sum_m theta_m S_m / sum_m theta_m                  theta_m: size of model m

The highest come first. Cost: a forward pass per record, rating prompt and model, with the logits of
one position. Source: Liu et al. 2024 (arXiv 2402.16705). Their code applies softmax to
probabilities, and its model weights do not sum to 1. DELIFT's version takes the lowest scores, and
counts five records as five prompts of one. This project wrote the rating prompts itself.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from delift_pipeline.core.errors import InputError
from delift_pipeline.selection.embedding import record_texts
from delift_pipeline.selection.language_model import (
    LanguageModel,
    begin_of_text,
    cut_middle,
    reduce_hidden_states,
    text_tokens,
)
from delift_pipeline.selection.options import NoOptions, Stage
from delift_pipeline.selection.ranking import rank_by_score
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder

RATING_PROMPTS = (
    "Below is an instruction with a response. Rate the quality of the response from 1 to 5, where "
    "1 is poor and 5 is excellent.\n\n",
    "How well does the response below do what its instruction asks? Give one number from 1 (not "
    "at all) to 5 (completely).\n\n",
    "You grade training data for an assistant. Grade the pair below from 1 (useless) to 5 (very "
    "useful).\n\n",
    "Read the instruction and the response. From 1 to 5, how correct and helpful is the "
    "response?\n\n",
    "Judge the following example on a scale of 1 to 5, with 5 for an accurate, complete and clear "
    "response and 1 for a bad one.\n\n",
)
QUESTION = "\n\nRating (1 to 5):"


class SelectItOptions(NoOptions):
    """The options of `selectit`.

    Attributes:
        level: `token` (only the first rating prompt), `sentence` (all of them), or `model`
            (several models).
        alpha: Weight of the disagreement of the rating prompts.
        models: Further models for the level `model`, by folder or hub id.
        prompts: Rating prompts that replace the built-in ones.
    """

    level: Literal["token", "sentence", "model"] = "sentence"
    alpha: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    models: tuple[str, ...] = ()
    prompts: tuple[str, ...] = Field(default=RATING_PROMPTS, min_length=1)

    @model_validator(mode="after")
    def _several_models(self) -> "SelectItOptions":
        if (self.level == "model") != bool(self.models):
            raise ValueError("`models` and level model need each other. Set both or neither")
        return self


class SelectItSelector(Selector):
    """Ranks by the model's rating of each record and its certainty."""

    name = "selectit"
    options_model = SelectItOptions
    traits = Traits(reads_model=True)

    def needs(self, stage: Stage, options: SelectItOptions) -> Needs:
        """Return the model and the further models."""
        return Needs(model=True, other_models=options.models)

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: SelectItOptions
    ) -> Selection:
        """Rank the whole pool. Texts longer than the window lose their middle.

        Raises:
            InputError: A model has no token for a rating, or its window is too small for the
                prompt.
        """
        pool, own = inputs.pool.sort("record_id"), inputs.language_model
        prompts = options.prompts[:1] if options.level == "token" else options.prompts
        scores, sizes = [], []
        for name in (None, *options.models):
            # Only one further model is in memory at a time.
            model = own if name is None else own.with_model(name)
            rated = token_scores(rating_probabilities(model, pool, prompts))
            scores.append(sentence_scores(rated, options.alpha))
            sizes.append(sum(weight.numel() for weight in model.loaded_model.model.parameters()))
        ids = tuple(pool["record_id"])
        return rank_by_score(self.name, inputs, ids, model_scores(scores, sizes), budget)


def token_scores(probabilities: np.ndarray) -> np.ndarray:
    """Return the token score of ratings with probabilities float [..., 5]."""
    base = probabilities.argmax(axis=-1)
    best = np.take_along_axis(probabilities, base[..., None], axis=-1)
    return (base + 1) * np.abs(best - probabilities).sum(axis=-1) / (len(RATINGS) - 1)


def sentence_scores(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Return the mean score over rating prompts, [prompts, records], less if they disagree."""
    return scores.mean(axis=0) / (1 + alpha * scores.std(axis=0))


def model_scores(scores: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return the mean of the models' scores, weighted by their numbers of parameters."""
    weights = np.asarray(sizes, dtype=np.float64) / sum(sizes)
    return np.einsum("m,mr->r", weights, np.stack(scores))


def rating_probabilities(
    model: "LanguageModel", pool: pl.DataFrame, prompts: Sequence[str]
) -> np.ndarray:
    """Return probabilities of the ratings 1 to 5, renormalised, float64 [prompts, records, 5].

    Raises:
        InputError: The vocabulary has no token for a rating, or the window is too small.
    """
    import torch

    encoder, ratings = model.encoder, rating_tokens(model.encoder)
    rows = text_tokens(encoder, record_texts(pool))
    ids = torch.from_numpy(ratings.ids)

    def sequences(prompt: str) -> list[np.ndarray]:
        """Return rating prompt, record and question; only the record is cut if it is too long."""
        lead = [*begin_of_text(encoder).tolist(), *encoder.plain.ids(prompt).tolist()]
        tail = [*encoder.plain.ids(QUESTION).tolist(), *ratings.before.tolist()]
        room = encoder.window - len(lead) - len(tail)
        if room < 1:
            reason = f"a window of {encoder.window} tokens is too small for selectit's rating"
            raise InputError(f"{reason} prompt. Raise it", field="window")
        parts = ([lead, cut_middle(row, room), tail] for row in rows)
        return [np.concatenate(part).astype(np.int32) for part in parts]

    def rating_logprobs(decoder: Any, hidden: Any, lengths: Any) -> torch.Tensor:
        """Return log-probabilities of the ratings after the last token of each sequence."""
        last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        each, tokens = last.repeat_interleave(len(ids), dim=0), ids.to(hidden.device)
        return decoder.logprobs(each, tokens.repeat(len(last))).reshape(len(last), len(ids))

    logits = [
        reduce_hidden_states(
            model, sequences(prompt), rating_logprobs, f"rating {number} of {len(prompts)}"
        )
        for number, prompt in enumerate(prompts, 1)
    ]
    shifted = np.stack(logits).astype(np.float64)
    likely = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return likely / likely.sum(axis=-1, keepdims=True)


RATINGS = ("1", "2", "3", "4", "5")


class RatingTokens(NamedTuple):
    """The token of each rating, int64 [5], and the tokens before each rating (a blank), int32."""

    before: np.ndarray
    ids: np.ndarray


def rating_tokens(encoder: "Encoder") -> RatingTokens:
    """Find the token of each rating.

    A blank and the digit are tokenised, or else only the digit. All ratings must begin with the
    same tokens and differ only in the last one, which is the rating's token.

    Raises:
        InputError: The vocabulary has no single token for each rating.
    """
    for blank in (" ", ""):
        written = [encoder.plain.ids(f"{blank}{rating}") for rating in RATINGS]
        alike = {tuple(ids[:-1].tolist()) for ids in written}
        last = {int(ids[-1]) for ids in written if len(ids)}
        if len(alike) == 1 and len(last) == len(RATINGS):
            ids = np.array([ids[-1] for ids in written], dtype=np.int64)
            return RatingTokens(written[0][:-1].astype(np.int32), ids)
    raise InputError(
        "its tokenizer has no single token for each of the ratings 1 to 5, so it cannot rate "
        "records. Choose another model for selectit",
        field="model",
    )
