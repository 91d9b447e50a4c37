"""The selectors by name."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.selection.options import Stage, checked_options
from delift_pipeline.selection.selector import Needs, Selector
from delift_pipeline.selection.selectors.deft_ucs import DeftUcsSelector
from delift_pipeline.selection.selectors.delift import DeliftSelector
from delift_pipeline.selection.selectors.delift_se import DeliftSeSelector
from delift_pipeline.selection.selectors.delift_trusted import DeliftTrustedSelector
from delift_pipeline.selection.selectors.full import FullSelector
from delift_pipeline.selection.selectors.ifd import IfdSelector
from delift_pipeline.selection.selectors.initial import InitialSelector
from delift_pipeline.selection.selectors.length import LengthSelector
from delift_pipeline.selection.selectors.less import LessSelector
from delift_pipeline.selection.selectors.nuggets import NuggetsSelector
from delift_pipeline.selection.selectors.random import RandomSelector
from delift_pipeline.selection.selectors.rds_plus import RdsPlusSelector
from delift_pipeline.selection.selectors.selectit import SelectItSelector

SELECTORS: dict[str, Selector] = {
    selector.name: selector
    for selector in (
        DeliftTrustedSelector(),
        DeliftSelector(),
        DeliftSeSelector(),
        RandomSelector(),
        FullSelector(),
        InitialSelector(),
        LengthSelector(),
        SelectItSelector(),
        LessSelector(),
        DeftUcsSelector(),
        RdsPlusSelector(),
        IfdSelector(),
        NuggetsSelector(),
    )
}


def selector_named(name: str) -> Selector:
    """The selector of that name.

    Raises:
        Refused: there is none; the fault names those there are.
    """
    if name not in SELECTORS:
        known = ", ".join(sorted(SELECTORS))
        raise Refused(Fault(f"no selector is called {name!r}; there are {known}", field="selector"))
    return SELECTORS[name]


def options_of(name: str, values: Mapping[str, Any] | BaseModel) -> BaseModel:
    """The validated options of the selector of that name.

    Raises:
        Refused: the selector is unknown, or an option is unknown or out of range.
    """
    return checked_options(selector_named(name).options_model, values)


def needs_of(name: str, stage: Stage, values: Mapping[str, Any] | BaseModel) -> Needs:
    """Which scores the selector of that name reads at a stage under these options.

    Raises:
        Refused: the selector is unknown, or an option is unknown or out of range.
    """
    return selector_named(name).needs(stage, options_of(name, values))
