"""A selector of one's own: written, registered and run; what is forgotten is named."""

from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel, ConfigDict

from delift_pipeline.selection import registry
from delift_pipeline.selection.options import NoOptions, Stage
from delift_pipeline.selection.ranking import rank_by_score
from delift_pipeline.selection.registry import SELECTORS, register
from delift_pipeline.selection.result import Selection
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import Needs, SelectionInputs, Selector, Traits


class WordsOptions(BaseModel):
    """The options of `words`.

    Attributes:
        of: Whose words are counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Literal["instruction", "output"] = "output"


class WordsSelector(Selector):
    """Records with the most different words first."""

    name = "words"
    options_model = WordsOptions
    traits = Traits()

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: WordsOptions
    ) -> Selection:
        """Rank the whole pool."""
        texts = inputs.pool[options.of].to_list()
        counts = np.array([len(set(text.split())) for text in texts])
        return rank_by_score(self.name, inputs, tuple(inputs.pool["record_id"]), counts, budget)


POOL = pl.DataFrame(
    {
        "record_id": ["a", "b", "c"],
        "source_ids": [["1"], ["2"], ["3"]],
        "instruction": ["one", "one two three", "one two"],
        "input": [None, None, None],
        "output": ["x x x x", "x y", "x y z"],
    },
    schema_overrides={"input": pl.String},
)


def test_a_registered_selector_is_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [type(selector) for selector in SELECTORS.values()]
    monkeypatch.setattr(registry, "SELECTORS", register(*kinds, WordsSelector))
    inputs = SelectionInputs("instruction_tuning", POOL)
    found = select(inputs, "words", 2, 0, {})
    assert found.ranking == ("c", "b")
    assert found.gains is not None and found.gains.tolist() == [3, 2]
    assert select(inputs, "words", 2, 0, {"of": "instruction"}).ranking == ("b", "c")


def variant(**changes: Any) -> type[Selector]:
    return type("Changed", (WordsSelector,), changes)


class EmbedderOptions(BaseModel):
    """Options with an embedder."""

    embedder: str = "tfidf"


def near(self: Selector, stage: Stage, options: BaseModel) -> Needs:
    return Needs("neighbours")


def model(self: Selector, stage: Stage, options: BaseModel) -> Needs:
    return Needs(model=True)


class Undeclared(Selector):
    """A selector without name, options and traits."""

    def select(
        self, inputs: SelectionInputs, budget: int, seed: int, options: BaseModel
    ) -> Selection:
        """Nothing."""
        return Selection(self.name, ())


class Nameless(Undeclared):
    options_model = NoOptions
    traits = Traits()


class WithoutOptions(Undeclared):
    name = "without"
    traits = Traits()


class WithoutTraits(Undeclared):
    name = "without"
    options_model = NoOptions


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Nameless, "no name"),
        (WithoutOptions, "no options_model"),
        (WithoutTraits, "no traits"),
        (variant(name="random"), "its name is taken"),
        (variant(options_model=EmbedderOptions), "takes_embedder"),
        (variant(traits=Traits(takes_embedder=True)), "takes_embedder"),
        (variant(traits=Traits(replays=True)), "replays"),
        (variant(needs=near), "reads_scores"),
        (variant(needs=model), "reads_model"),
    ],
)
def test_what_a_selector_lacks_is_named_when_it_is_registered(
    kind: type[Selector], fault: str
) -> None:
    kinds = [type(selector) for selector in SELECTORS.values()]
    with pytest.raises(TypeError, match=f"{kind.__name__} cannot be registered: .*{fault}"):
        register(*kinds, kind)


def test_a_selector_that_selects_nothing_cannot_be_made() -> None:
    class Idle(Selector):
        name = "idle"
        options_model = NoOptions
        traits = Traits()

    with pytest.raises(TypeError, match="select"):
        register(Idle)


def test_the_reference_arms_are_known_by_their_traits() -> None:
    references = {name: one.traits.reference for name, one in SELECTORS.items()}
    assert {name: kind for name, kind in references.items() if kind} == {
        "initial": "base",
        "random": "random",
        "full": "whole",
    }
