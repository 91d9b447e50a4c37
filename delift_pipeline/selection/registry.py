"""All selectors by name."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from delift_pipeline.core.errors import InputError
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
from delift_pipeline.selection.selectors.qdit import QditSelector
from delift_pipeline.selection.selectors.rds_plus import RdsPlusSelector
from delift_pipeline.selection.selectors.reference import (
    FullSelector,
    InitialSelector,
    RandomSelector,
)
from delift_pipeline.selection.selectors.selectit import SelectItSelector
from delift_pipeline.selection.selectors.tsds import TsdsSelector
from delift_pipeline.selection.selectors.wici import WiciSelector


def register(*selectors: type[Selector]) -> dict[str, Selector]:
    """Return selectors by name, after a check that each is complete.

    Raises:
        TypeError: One lacks its name, options, traits or `select`, its name is taken, or its traits
            contradict its options or its needs.
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
    """Return what a selector lacks or where it contradicts itself, or None."""
    kinds = {"name": str, "options_model": type(BaseModel), "traits": Traits}
    for attribute, kind in kinds.items():
        if not isinstance(getattr(selector, attribute, None), kind):
            return f"it has no {attribute}"
    traits = selector.traits
    for trait, option in (("takes_embedder", "embedder"), ("replays", "replay")):
        if getattr(traits, trait) != (option in selector.options_model.model_fields):
            return f"its trait {trait} contradicts its options"
    needs = selector.needs("instruction_tuning", selector.options_model())
    if needs.blocks and not traits.reads_scores:
        return "it reads scores, but its trait reads_scores is false"
    if needs.model and not traits.reads_model:
        return "it reads the model, but its trait reads_model is false"
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
    QditSelector,
    WiciSelector,
    TsdsSelector,
)


def traits_of(name: str) -> Traits:
    """Return a selector's traits, or default ones for a name that only old files contain."""
    return SELECTORS[name].traits if name in SELECTORS else Traits()


def get_selector(name: str) -> Selector:
    """Return the selector with this name.

    Raises:
        InputError: There is none; the fault lists all selectors.
    """
    if name not in SELECTORS:
        known = ", ".join(sorted(SELECTORS))
        raise InputError(f"{name!r} is not a selector. Choose from: {known}", field="selector")
    return SELECTORS[name]


def options_of(name: str, values: Mapping[str, Any] | BaseModel) -> BaseModel:
    """Return the validated options of the selector with this name.

    Raises:
        InputError: The selector is unknown, or an option is unknown or out of range.
    """
    plain = values.model_dump() if isinstance(values, BaseModel) else dict(values)
    return validate(get_selector(name).options_model, plain)


def replay_share(name: str, stage: Stage, values: Mapping[str, Any] | BaseModel) -> float:
    """Return the share of picks that a selector replays from existing records.

    Raises:
        InputError: The selector is unknown, or an option is unknown or out of range.
    """
    options: Any = options_of(name, values)
    return options.replay if stage == "continual" and SELECTORS[name].traits.replays else 0.0


def needs_of(name: str, stage: Stage, values: Mapping[str, Any] | BaseModel) -> Needs:
    """Return what a selector reads at a stage with these options.

    Raises:
        InputError: The selector is unknown, or an option is unknown or out of range.
    """
    return get_selector(name).needs(stage, options_of(name, values))
