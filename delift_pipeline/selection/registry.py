"""The selectors by name."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.validation import validate
from delift_pipeline.selection.options import Stage
from delift_pipeline.selection.selector import Needs, Selector, Traits
from delift_pipeline.selection.selectors.deft_ucs import DeftUcsSelector
from delift_pipeline.selection.selectors.delift import DeliftSelector
from delift_pipeline.selection.selectors.delift_se import DeliftSeSelector
from delift_pipeline.selection.selectors.delift_trusted import DeliftTrustedSelector
from delift_pipeline.selection.selectors.ifd import IfdSelector
from delift_pipeline.selection.selectors.length import LengthSelector
from delift_pipeline.selection.selectors.less import LessSelector
from delift_pipeline.selection.selectors.nuggets import NuggetsSelector
from delift_pipeline.selection.selectors.rds_plus import RdsPlusSelector
from delift_pipeline.selection.selectors.reference import (
    FullSelector,
    InitialSelector,
    RandomSelector,
)
from delift_pipeline.selection.selectors.selectit import SelectItSelector


def register(*selectors: type[Selector]) -> dict[str, Selector]:
    """Selectors by name, each complete.

    Raises:
        TypeError: one lacks its name, options, traits or `select`, its name is taken, or its traits
            contradict its options or what it says that it needs.
    """
    selector_of: dict[str, Selector] = {}
    for kind in selectors:
        selector = kind()
        fault = _registration_fault(selector)
        if fault or selector.name in selector_of:
            fault = fault or "its name is taken"
            raise TypeError(f"the selector {kind.__name__} cannot be registered: {fault}")
        selector_of[selector.name] = selector
    return selector_of


def _registration_fault(selector: Selector) -> str | None:
    """What a selector lacks or contradicts itself in."""
    kinds = {"name": str, "options_model": type(BaseModel), "traits": Traits}
    for attribute, kind in kinds.items():
        if not isinstance(getattr(selector, attribute, None), kind):
            return f"it declares no {attribute}"
    traits = selector.traits
    for trait, option in (("takes_embedder", "embedder"), ("replays", "replay")):
        if getattr(traits, trait) != (option in selector.options_model.model_fields):
            return f"its trait {trait} and its options disagree"
    needs = selector.needs("instruction_tuning", selector.options_model())
    if needs.blocks and not traits.reads_scores:
        return "it reads scores, and its traits do not say so"
    if needs.model and not traits.reads_model:
        return "it reads the model, and its traits do not say so"
    return None


SELECTORS: dict[str, Selector] = register(
    DeliftTrustedSelector,
    DeliftSelector,
    DeliftSeSelector,
    RandomSelector,
    FullSelector,
    InitialSelector,
    LengthSelector,
    SelectItSelector,
    LessSelector,
    DeftUcsSelector,
    RdsPlusSelector,
    IfdSelector,
    NuggetsSelector,
)


def traits_of(name: str) -> Traits:
    """The traits of the selector of that name; none for one that stored files alone know."""
    return SELECTORS[name].traits if name in SELECTORS else Traits()


def get_selector(name: str) -> Selector:
    """The selector of that name.

    Raises:
        Refused: there is none; the fault names those there are.
    """
    if name not in SELECTORS:
        known = ", ".join(sorted(SELECTORS))
        raise Refused(f"no selector is called {name!r}; there are {known}", field="selector")
    return SELECTORS[name]


def options_of(name: str, values: Mapping[str, Any] | BaseModel) -> BaseModel:
    """The validated options of the selector of that name.

    Raises:
        Refused: the selector is unknown, or an option is unknown or out of range.
    """
    plain = values.model_dump() if isinstance(values, BaseModel) else dict(values)
    return validate(get_selector(name).options_model, plain)


def replay_share(name: str, stage: Stage, values: Mapping[str, Any] | BaseModel) -> float:
    """The share of picks that the selector of that name replays from existing records.

    Raises:
        Refused: the selector is unknown, or an option is unknown or out of range.
    """
    options: Any = options_of(name, values)
    return options.replay if stage == "continual" and SELECTORS[name].traits.replays else 0.0


def needs_of(name: str, stage: Stage, values: Mapping[str, Any] | BaseModel) -> Needs:
    """Which scores the selector of that name reads at a stage under these options.

    Raises:
        Refused: the selector is unknown, or an option is unknown or out of range.
    """
    return get_selector(name).needs(stage, options_of(name, values))
