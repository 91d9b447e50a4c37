"""How prompts change the log-probability of each answer token, as evidence against an answer.

For a suspected record, each answer token is scored alone and after a neighbour as demonstration. A
token that becomes less likely contradicts the neighbour's answer. Each token can also be scored
without and with the record's own prompt. The sum of these changes is support (`scoring.support`),
and a token that becomes less likely does not fit the prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from delift_pipeline.selection.language_model import LanguageModel

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import EncodedRecords
    from delift_pipeline.scoring.model import LoadedModel

MOST_RECORDS = 50
"""For how many suspected records tokens are scored by default, the least trusted first."""
DECIMALS = 4

TOKENS_SCHEMA = pl.Schema(
    dict.fromkeys(("record_id", "demonstration_id"), pl.String())
    | {"tokens": pl.List(pl.String())}
    | dict.fromkeys(("alone", "after"), pl.List(pl.Float64()))
)


@dataclass(frozen=True)
class TokenChange:
    """The log-probabilities of a record's answer tokens after one demonstration, or its own prompt.

    Attributes:
        record_id: The demonstration, or the record itself if the change is that of its own prompt.
        tokens: The answer's tokens as text, the end-of-text token included.
        alone: Log-probability of each token without a demonstration, in nats; for the record's own
            prompt, without that prompt.
        after: Log-probability of each token after the demonstration; for the record's own prompt,
            after that prompt.
    """

    record_id: str
    tokens: list[str]
    alone: list[float]
    after: list[float]

    @property
    def change(self) -> list[float]:
        """Return `after` minus `alone` for each token; negative for tokens that get less likely."""
        pairs = zip(self.after, self.alone, strict=True)
        return [round(after - alone, DECIMALS) for after, alone in pairs]

    def as_json(self) -> dict[str, Any]:
        """Return all fields and the change as plain data."""
        return {**asdict(self), "change": self.change}


def token_changes(
    reader: LanguageModel,
    texts: Mapping[str, Mapping[str, Any]],
    demonstrations: Mapping[str, Sequence[str]],
) -> dict[str, list[TokenChange]]:
    """Score the answer tokens of records alone and after each of their demonstrations.

    `texts` are rows of a frame of records by record_id, and `demonstrations` record_ids by target.
    The model is not loaded if there are no demonstrations.

    Returns:
        The changes of every target. A record that does not fit the window has none, and serves as
        no demonstration.

    Raises:
        InputError: The model cannot be used.
    """
    if not any(demonstrations.values()):
        return {record: [] for record in demonstrations}
    ids = dict.fromkeys(one for record, near in demonstrations.items() for one in (record, *near))
    encoded = reader.encoder.encode(pl.DataFrame([texts[record] for record in ids]))
    return {
        record: _changes(reader.loaded_model, encoded, record, near)
        if record in encoded.rows
        else []
        for record, near in demonstrations.items()
    }


def prompt_changes(
    reader: LanguageModel, texts: Mapping[str, Mapping[str, Any]]
) -> dict[str, TokenChange]:
    """Score the answer tokens of records without and with their own prompt.

    `texts` are rows of a frame of records by record_id. The model is not loaded if there are none.

    Returns:
        The change of every record that fits the window.

    Raises:
        InputError: The model cannot be used.
    """
    if not texts:
        return {}
    encoded = reader.encoder.encode(pl.DataFrame(list(texts.values())))
    bare, loaded = reader.encoder.without_prompts(encoded), reader.loaded_model
    return {
        record: TokenChange(
            record,
            _answer_tokens(loaded, encoded, record),
            *(_logprobs(loaded, own, record, [own.prefix()])[0] for own in (bare, encoded)),
        )
        for record in encoded.ids
    }


def _changes(
    loaded: "LoadedModel", encoded: "EncodedRecords", record: str, near: Sequence[str]
) -> list[TokenChange]:
    fitting = [other for other in near if other in encoded.rows]
    prefixes = [encoded.prefix(), *(encoded.prefix(encoded.rows[other]) for other in fitting)]
    alone, *after = _logprobs(loaded, encoded, record, prefixes)
    tokens = _answer_tokens(loaded, encoded, record)
    pairs = zip(fitting, after, strict=True)
    return [TokenChange(other, tokens, alone, logprobs) for other, logprobs in pairs]


def _logprobs(
    loaded: "LoadedModel", encoded: "EncodedRecords", record: str, prefixes: Sequence[np.ndarray]
) -> list[list[float]]:
    """Return log p of each answer token of a record after each prefix, rounded."""
    from delift_pipeline.scoring.engine import Job
    from delift_pipeline.scoring.engines import NaiveEngine

    row = np.asarray([encoded.rows[record]])
    scores = NaiveEngine(loaded.model).score(encoded, [Job(prefix, row) for prefix in prefixes])
    return [[round(float(x), DECIMALS) for x in one.logprobs] for one in scores]


def _answer_tokens(loaded: "LoadedModel", encoded: "EncodedRecords", record: str) -> list[str]:
    answer = encoded.answer(encoded.rows[record]).tolist()
    return [str(loaded.encoder.tokenizer.decode([token])) for token in answer]


def changes_frame(changes: Mapping[str, Sequence[TokenChange]]) -> pl.DataFrame:
    """Return changes as a table (`TOKENS_SCHEMA`)."""
    rows = [(record, *vars(one).values()) for record, several in changes.items() for one in several]
    return pl.DataFrame(rows, schema=TOKENS_SCHEMA, orient="row")


def read_changes(frame: pl.DataFrame) -> dict[str, list[TokenChange]]:
    """Read changes by record from a table of `changes_frame`."""
    changes: dict[str, list[TokenChange]] = {}
    for record, *change in frame.select(TOKENS_SCHEMA.names()).iter_rows():
        changes.setdefault(record, []).append(TokenChange(*change))
    return changes
