"""What a selector is given and what it promises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import BaseModel

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.kernel.block import Block, UtilityForm
from delift_pipeline.records.schema import display_ids
from delift_pipeline.selection.budget import Budget
from delift_pipeline.selection.constraints import Constraints
from delift_pipeline.selection.language_model import Gradients, LanguageModel
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.rules import Rules

Reference = Literal["base", "random", "whole"]
BlockLoader = Callable[[str, UtilityForm], Block]


@dataclass(frozen=True)
class Traits:
    """What holds of a selector at every stage and under all options.

    Attributes:
        reads_scores: Whether it may read scores of pairs.
        reads_model: Whether it may read the language model itself.
        takes_embedder: Whether its option `embedder` names what embeds texts.
        replays: Whether its option `replay` is a share of picks from D_E (continual).
        weighs_trust: Whether it weighs records by their trust, read as its options say.
        reference: Which reference arm it makes, that others are compared with: `base` (nothing is
            selected, and the model stays as it is), `random`, or `whole` (every record, whatever
            the budget). None: it is a method of its own.
    """

    reads_scores: bool = False
    reads_model: bool = False
    takes_embedder: bool = False
    replays: bool = False
    weighs_trust: bool = False
    reference: Reference | None = None


@dataclass(frozen=True)
class Needs:
    """Which scores a selector reads at a stage.

    Attributes:
        self_pairs: `all` of D x D, the `neighbours` only, or `none`.
        target_pairs: Whether D_T x D is read.
        existing_pairs: Whether D x D_E is read.
        existing_records: Whether D_E itself is read, without scores (the pairs imply it).
        replay_pairs: Whether D_E x D_E is read, to replay some of D_E.
        model: Whether the language model itself is read, beyond pair scores.
        answers: Whether a record whose answer does not fit the window cannot be ranked, though no
            block is read.
        other_models: Further models that are read, by folder or hub id.
    """

    self_pairs: Literal["none", "neighbours", "all"] = "none"
    target_pairs: bool = False
    existing_pairs: bool = False
    existing_records: bool = False
    replay_pairs: bool = False
    model: bool = False
    answers: bool = False
    other_models: tuple[str, ...] = ()

    @property
    def reads_existing(self) -> bool:
        """Whether D_E must be known."""
        return self.existing_pairs or self.existing_records or self.replay_pairs

    @property
    def scores(self) -> bool:
        """Whether only records that can be scored can be ranked."""
        return self.answers or bool(self.blocks)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the kernel blocks read."""
        names = {"none": [], "neighbours": ["neighbours"], "all": ["self"]}[self.self_pairs]
        names += ["target"] * self.target_pairs + ["existing"] * self.existing_pairs
        return (*names, *(["replay"] * self.replay_pairs))


def count_unscorable(records: pl.DataFrame, unscorable: Mapping[str, str]) -> tuple[int, str]:
    """How many records cannot be scored; the first one's own id and why, if there is any."""
    bad = [record for record in records["record_id"] if record in unscorable]
    if not bad:
        return 0, ""
    return len(bad), f"{display_ids(records, bad[:1])[0]}: {unscorable[bad[0]]}"


def _refuse_block(name: str, form: UtilityForm) -> Block:
    raise LookupError(f"no kernel was given, and the block {name} ({form}) is wanted")


@dataclass(frozen=True)
class SelectionInputs:
    """What a selector chooses from.

    Attributes:
        stage: The training stage.
        pool: D, in file order; in the continual stage the records in no parent.
        block: Loads a kernel block by name (`self`, `neighbours`, `target`, `existing`, `replay`)
            and form.
        existing: record_ids of D_E, what this arm's parents trained on (continual only).
        existing_records: The records of D_E, where a selector reads their texts.
        target: The records of D_T, where a selector reads their texts.
        whole: All records that the block `neighbours` spans (a version's whole pool, while the
            continual stage chooses from the new ones); None: the pool.
        rules: Pins and quotas.
        allowance: A budget in tokens or `auto`; None where the count is all there is to it.
        model: The language model, where the selector needs one.
        gradients: Gradients of that model, where the selector needs them.
        unscorable: record_id -> why it cannot be scored, as far as that is known.
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

    def constraints(self, candidates: Sequence[str], count: int) -> Constraints | None:
        """What an optimizer must keep to, or None.

        Args:
            candidates: record_ids in the order of the objective's columns.
            count: Picks asked for, what shares are taken of.

        Raises:
            Refused: a rule names what is not there.
        """
        allowance = self.allowance or Budget(count)
        if self.rules == Rules() and not allowance.is_open_ended:
            return None
        return self.rules.resolve(self.pool, candidates, replace(allowance, count=count))

    @property
    def language_model(self) -> LanguageModel:
        """The language model.

        Raises:
            DeliftError: none was given.
        """
        if self.model is None:
            raise DeliftError("the selector reads a language model, and none was given")
        return self.model

    @property
    def neighbourhood(self) -> pl.DataFrame:
        """The records that the block `neighbours` spans."""
        return self.pool if self.whole is None else self.whole

    @property
    def records(self) -> pl.DataFrame:
        """All records whose texts may be read but for the target set, each once."""
        frames = [self.pool, self.neighbourhood]
        if self.existing_records is not None:
            frames.append(self.existing_records)
        united = pl.concat(frames, how="diagonal_relaxed")
        return united.unique("record_id", keep="first", maintain_order=True)

    def unranked_notes(self, selector: str, ranked: int) -> tuple[str, ...]:
        """How many records of the pool a selector cannot rank, and why the first one; if any."""
        if not (missing := self.pool.height - ranked):
            return ()
        note = f"{missing:,} records have no scores and cannot be ranked by {selector}"
        _, first = count_unscorable(self.pool, self.unscorable)
        return (f"{note} (first: {first})" if first else note,)

    def records_of(self, ids: Sequence[str]) -> pl.DataFrame:
        """The records of these record_ids."""
        return self.records.filter(pl.col("record_id").is_in(ids))


class Selector(ABC):
    """Turns a pool into a ranking.

    Attributes:
        name: The registry's name.
        options_model: The pydantic model of its options.
        traits: What holds of it at every stage and under all options.
        default_needs: What it reads, where neither the stage nor an option decides that.
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
        """Rank `budget` records (fewer where fewer can be ranked, and the notes say so)."""
