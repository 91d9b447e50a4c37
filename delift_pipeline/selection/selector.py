"""The interface of a selector: its traits, its needs and its inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.hashing import digest_text
from delift_pipeline.kernel.block import Block, UtilityForm
from delift_pipeline.records.schema import display_ids
from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.embedding import Similarities, coverage_similarities
from delift_pipeline.selection.language_model import Gradients, LanguageModel
from delift_pipeline.selection.options import EmbeddingOptions, Stage, TrustedOptions
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules

Reference = Literal["base", "random", "whole"]
BlockLoader = Callable[[str, UtilityForm], Block]
SupportLoader = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Traits:
    """Properties of a selector that hold for all stages and options.

    Attributes:
        reads_scores: Whether it may read scores of pairs.
        reads_model: Whether it may read the language model itself.
        takes_embedder: Whether it has an option `embedder`.
        replays: Whether it has an option `replay`, the share of picks from D_E (continual).
        weighs_trust: Whether it weighs records by their trust.
        reference: The kind of reference arm, if it is one: `base` (it selects nothing, and the
            model stays as it is), `random`, or `whole` (every record, whatever the budget).
    """

    reads_scores: bool = False
    reads_model: bool = False
    takes_embedder: bool = False
    replays: bool = False
    weighs_trust: bool = False
    reference: Reference | None = None


@dataclass(frozen=True)
class Needs:
    """What a selector reads at a stage: D is the pool, D_T the target set, D_E existing records.

    Attributes:
        self_pairs: `all` pairs of D x D, only `neighbours`, or `none`.
        target_pairs: Whether it reads D_T x D.
        existing_pairs: Whether it reads D x D_E.
        existing_records: Whether it reads the records of D_E without scores.
        replay_pairs: Whether it reads D_E x D_E, to replay some of D_E.
        support: Whether it reads the support of records (`scoring.support`), which needs no pairs.
        model: Whether it reads the language model itself, beyond pair scores.
        answers: Whether it cannot rank a record whose answer does not fit the window, although it
            reads no block.
        only_tokenizer: Whether it reads nothing of the model but its tokenizer.
        other_models: Further models that it reads, by folder or hub id.
    """

    self_pairs: Literal["none", "neighbours", "all"] = "none"
    target_pairs: bool = False
    existing_pairs: bool = False
    existing_records: bool = False
    replay_pairs: bool = False
    support: bool = False
    model: bool = False
    answers: bool = False
    only_tokenizer: bool = False
    other_models: tuple[str, ...] = ()

    @property
    def reads_existing(self) -> bool:
        """Whether D_E must be known."""
        return self.existing_pairs or self.existing_records or self.replay_pairs

    @property
    def scores(self) -> bool:
        """Whether it can rank only records that can be scored."""
        return self.answers or self.support or bool(self.blocks)

    @property
    def reads_model(self) -> bool:
        """Whether its picks depend on what the language model computes."""
        return self.scores or (self.model and not self.only_tokenizer)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Return the names of the kernel blocks that it reads."""
        names = {"none": [], "neighbours": ["neighbours"], "all": ["self"]}[self.self_pairs]
        names += ["target"] * self.target_pairs + ["existing"] * self.existing_pairs
        return (*names, *(["replay"] * self.replay_pairs))


def count_unscorable(records: pl.DataFrame, unscorable: Mapping[str, str]) -> tuple[int, str]:
    """Return how many records cannot be scored, and the first one's source id and reason."""
    bad = [record for record in records["record_id"] if record in unscorable]
    if not bad:
        return 0, ""
    return len(bad), f"{display_ids(records, bad[:1])[0]}: {unscorable[bad[0]]}"


def _refuse_block(name: str, form: UtilityForm) -> Block:
    raise LookupError(f"the selector reads the block {name} ({form}), but there is no kernel")


def _refuse_support(_: Sequence[str]) -> np.ndarray:
    raise LookupError("the selector reads support, but there are no scores")


@dataclass(frozen=True)
class SelectionInputs:
    """The data that a selector chooses from.

    Attributes:
        stage: The fine-tuning stage.
        pool: D, in file order. In the continual stage, the records that no parent has.
        block: Loads a kernel block by name (`self`, `neighbours`, `target`, `existing`, `replay`)
            and form.
        existing: record_ids of D_E (continual only).
        existing_records: The records of D_E, if the selector reads their texts.
        target: The records of D_T, if the selector reads their texts.
        whole: All records of the block `neighbours`. In the continual stage it is the version's
            whole pool, of which `pool` has only the new records. None: the pool.
        rules: Pins, exclusions and quotas.
        allowance: The limits of a budget in tokens or `auto`; None for a plain count.
        model: The language model, if the selector needs one.
        gradients: Gradients of that model, if the selector needs them.
        unscorable: record_id -> why it cannot be scored, for records known to be unscorable.
        support: Returns the support of records, float64 [records]; NaN for those without scores.
    """

    stage: Stage
    pool: pl.DataFrame
    block: BlockLoader = field(default=_refuse_block, repr=False)
    existing: tuple[str, ...] = ()
    existing_records: pl.DataFrame | None = field(default=None, repr=False)
    target: pl.DataFrame | None = field(default=None, repr=False)
    whole: pl.DataFrame | None = field(default=None, repr=False)
    rules: Rules = field(default_factory=Rules)
    allowance: Budget | None = None
    model: LanguageModel | None = field(default=None, repr=False)
    gradients: Gradients | None = field(default=None, repr=False)
    unscorable: Mapping[str, str] = field(default_factory=dict, repr=False)
    support: SupportLoader = field(default=_refuse_support, repr=False)
    _similarities: dict[Any, Similarities] = field(default_factory=dict, repr=False, compare=False)

    def similarities(
        self, frame: pl.DataFrame, options: EmbeddingOptions | TrustedOptions
    ) -> Similarities:
        """Return `coverage_similarities` of records, computed once for inputs and their copies.

        Raises:
            InputError: The embedder cannot be loaded.
        """
        limits = options.dense_limit, options.coverage_neighbours
        covers = options.covers if isinstance(options, TrustedOptions) else "records"
        key = (options.embedder, covers, *limits, digest_text(*frame["record_id"].sort()))
        if key not in self._similarities:
            self._similarities[key] = coverage_similarities(frame, options, self.model)
        return self._similarities[key]

    def constraints(self, candidates: Sequence[str], count: int) -> Constraints | None:
        """Return the constraints for an optimizer, or None.

        Args:
            candidates: record_ids in the order of the objective's columns.
            count: The number of picks. Shares in quotas are shares of it.

        Raises:
            InputError: A rule names a record or column that does not exist.
        """
        allowance = self.allowance or Budget(count)
        if self.rules == Rules() and not allowance.is_open_ended:
            return None
        return self.rules.resolve(self.pool, candidates, replace(allowance, count=count))

    @property
    def language_model(self) -> LanguageModel:
        """Return the language model.

        Raises:
            DeliftError: There is none.
        """
        if self.model is None:
            raise DeliftError("the selector reads a language model, but the inputs have none")
        return self.model

    @property
    def neighbourhood(self) -> pl.DataFrame:
        """Return all records of the block `neighbours`."""
        return self.pool if self.whole is None else self.whole

    @property
    def records(self) -> pl.DataFrame:
        """Return pool, neighbourhood and existing records, each once."""
        frames = [self.pool, self.neighbourhood]
        if self.existing_records is not None:
            frames.append(self.existing_records)
        united = pl.concat(frames, how="diagonal_relaxed")
        return united.unique("record_id", keep="first", maintain_order=True)

    def unranked_notes(self, selector: str, ranked: int) -> tuple[str, ...]:
        """Return a note on how many records a selector cannot rank and why the first, if any."""
        if not (missing := self.pool.height - ranked):
            return ()
        note = f"{missing:,} records have no scores and cannot be ranked by {selector}"
        _, first = count_unscorable(self.pool, self.unscorable)
        return (f"{note} (first: {first})" if first else note,)

    def records_of(self, ids: Sequence[str]) -> pl.DataFrame:
        """Return the records with these record_ids."""
        return self.records.filter(pl.col("record_id").is_in(ids))


class Selector(ABC):
    """A method that ranks the records of a pool.

    Attributes:
        name: The name in the registry.
        options_model: The pydantic model of its options.
        traits: Properties that hold for all stages and options.
        default_needs: What it reads, if that does not depend on stage and options.
    """

    default_needs: ClassVar[Needs] = Needs()
    name: ClassVar[str]
    options_model: ClassVar[type[BaseModel]]
    traits: ClassVar[Traits]

    def needs(self, stage: Stage, options: Any) -> Needs:
        """Return what is read at a stage under these options: `default_needs` unless overridden."""
        return self.default_needs

    @abstractmethod
    def select(self, inputs: SelectionInputs, budget: int, seed: int, options: Any) -> Selection:
        """Rank `budget` records. If fewer can be ranked, the selection's notes say so."""
