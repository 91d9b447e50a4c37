"""Arms: one tracked experiment cell each (stage x selector x options), read from `arms.yaml`."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from delift_pipeline.core.errors import Fault, Refused
from delift_pipeline.core.home import ARM_PATTERN, Home
from delift_pipeline.core.validation import (
    checked_webhook,
    faults_of,
    parse_yaml,
    read_text,
    unknown_name,
)
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.selection.budget import BudgetText, parse_budget
from delift_pipeline.selection.embedding import MODEL
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import SELECTORS
from delift_pipeline.selection.rules import RuleOptions
from delift_pipeline.selection.run import refuse_impossible
from delift_pipeline.selection.selector import Traits
from delift_pipeline.training.options import TrainingOptions

T = TypeVar("T", bound=BaseModel)

SECTIONS = ("plan", "automation", "defaults", "selectors", "arms")

COMPARISONS = tuple(
    name for name, one in SELECTORS.items() if one.traits.reference in ("random", "whole")
)
"""Selectors that every other arm's report is read beside, so they are made first."""


def _check(check: Callable[..., object], *given: Any) -> None:
    """Call what refuses values; pydantic takes a refusal as a `ValueError`."""
    try:
        check(*given)
    except Refused as refused:
        raise ValueError(refused.faults[0].reason) from refused


class PlanOptions(BaseModel):
    """How pairs are planned for a version.

    Attributes:
        coverage: Overrides the versions' own: `neighbours`, `all`, or `auto` (all where an enabled
            arm needs every pair and the pool is within dense_limit).
        dense_limit: Largest pool for which every pair is scored when an arm needs it.
        neighbours: Nearest prompts scored per record.
        embedder: `tfidf`, `minilm`, or a sentence-transformers folder or hub id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    coverage: Literal["auto", "neighbours", "all"] | None = None
    dense_limit: int = Field(default=2000, ge=1)
    neighbours: int = Field(default=20, ge=1)
    embedder: str = "tfidf"

    @field_validator("embedder")
    @classmethod
    def _needs_no_model(cls, embedder: str) -> str:
        if embedder == MODEL:
            said = "pairs are planned without the model: choose tfidf or minilm here"
            raise ValueError(said + ", and model in a selector's options")
        return embedder


class AutomationOptions(BaseModel):
    """What the sensors may start by themselves, once they are switched on.

    Attributes:
        train: Train and evaluate the arms too, not only select.
        seconds: Least time between two evaluations of a sensor.
        retries: How often a step is tried again after a failure that may pass.
        retry_seconds: Wait before the first retry, doubled before each further one.
        isolate_steps: Each step of a run in a process of its own, whose memory is given back; false
            saves some seconds a step.
        webhook: An http(s) address that alerts are posted to; $DELIFT_ALERT_URL comes first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: bool = False
    seconds: int = Field(default=30, ge=1)
    retries: int = Field(default=2, ge=0)
    retry_seconds: float = Field(default=30.0, ge=0)
    isolate_steps: bool = True
    webhook: str | None = None

    @field_validator("webhook")
    @classmethod
    def _can_be_posted_to(cls, webhook: str | None) -> str | None:
        if webhook is not None:
            _check(checked_webhook, webhook)
        return webhook


class ArmSettings(BaseModel):
    """What `arms.yaml` says of one arm.

    Attributes:
        enabled: False keeps a retired arm listed and asks for no more runs of it.
        budget: Below 1 a share of the pool, an integer from 1 a count, `full` for all,
            `20000tokens`, or `auto` (`auto:0.05`): as many as pay.
        rules: Records pinned in or out, quotas and caps.
        balance: Columns that the version keeps, to compare pool and subset by beside the usual.
        seed: Seeds the selector (where it draws) and the training.
        options: The selector's options, complete and validated by its own model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    budget: BudgetText = 0.3
    rules: RuleOptions = Field(default_factory=RuleOptions)
    balance: tuple[str, ...] = ()
    seed: int = 0
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingOptions
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions)

    @field_validator("budget", mode="before")
    @classmethod
    def _means_something(cls, budget: BudgetText) -> BudgetText:
        _check(parse_budget, budget, sys.maxsize)
        return budget


class Arm(ArmSettings):
    """One arm: what is selected, how it is trained and how it is measured.

    Attributes:
        name: `stage.selector[-variant]`; never renamed.
    """

    name: str

    @model_validator(mode="after")
    def _can_be_kept_to(self) -> "Arm":
        ruled = (self.budget, self.rules.asked, sys.maxsize, self.options)
        _check(refuse_impossible, self.selector, self.stage, *ruled)
        return self

    @property
    def traits(self) -> Traits:
        """The traits of its selector."""
        return SELECTORS[self.selector].traits

    @property
    def stage(self) -> Stage:
        """The part of the name before the first dot."""
        return cast(Stage, self.name.split(".", 1)[0])

    @property
    def selector(self) -> str:
        """The selector's name, without the variant."""
        return _selector_of(self.name)


@dataclass(frozen=True)
class Arms:
    """All arms and the options they share."""

    plan: PlanOptions
    automation: AutomationOptions
    arms: tuple[Arm, ...]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self.arms)

    @property
    def names(self) -> list[str]:
        """All names, enabled or not, in the file's order."""
        return [arm.name for arm in self.arms]

    def arm(self, name: str) -> Arm:
        """The arm of that name.

        Raises:
            Refused: there is none; the sentence names those there are.
        """
        if name in self.names:
            return self.arms[self.names.index(name)]
        reason = f"no arm is named {name!r}; arms.yaml has: {', '.join(self.names)}"
        raise Refused(reason, field="arm")

    def of_stages(self, stages: tuple[str, ...]) -> list[Arm]:
        """Enabled arms of these stages, the comparisons (random, full) first."""
        chosen = [arm for arm in self.arms if arm.enabled and arm.stage in stages]
        return sorted(chosen, key=lambda arm: arm.selector not in COMPARISONS)


def load_arms(home: Home | None = None) -> Arms:
    """The arms of a home: its own `arms.yaml` over the shipped one.

    Raises:
        Refused: every fault of the file at once, each with its field.
    """
    own = (home or Home.at()).arms_file
    if own.is_file():
        return read_arms(read_text(own, own.name), own.name)
    return read_arms("", "arms.yaml (package default)")


@cache
def _shipped() -> dict[str, Any]:
    """The shipped `arms.yaml`."""
    shipped = resources.files("delift_pipeline.defaults").joinpath("arms.yaml")
    return parse_yaml(shipped.read_text("utf-8"), "arms.yaml").value


def read_arms(text: str, file: str) -> Arms:
    """The arms of an `arms.yaml`; what it does not give is as in the shipped file.

    `plan`, `automation`, `defaults` and `selectors` inherit field by field. A file with an `arms:`
    block lists all arms of its home, and each inherits from the shipped arm of the same name. A
    file without that block keeps the shipped arms.

    Raises:
        Refused: every fault at once.
    """
    reader, shipped = _ArmsReader(text, file), _shipped()
    given = reader.given
    plan = reader.validated(PlanOptions, _over(shipped["plan"], given["plan"]), "plan")
    automation = _over(shipped["automation"], given["automation"])
    automation = reader.validated(AutomationOptions, automation, "automation")
    defaults = _with_training(shipped["defaults"], given["defaults"])
    selectors = reader.selectors()
    names = given["arms"] if reader.lists_arms else shipped["arms"]
    arms = [reader.arm(name, defaults, selectors) for name in names]
    if reader.faults:
        raise Refused(*sorted(dict.fromkeys(reader.faults), key=lambda fault: fault.line or 0))
    assert plan is not None and automation is not None  # else there is a fault
    return Arms(plan, automation, tuple(filter(None, arms)))


class _ArmsReader:
    """Reads one `arms.yaml` and collects every fault in it."""

    def __init__(self, text: str, file: str) -> None:
        document = parse_yaml(text, file)
        self.file, self.lines, self.faults = file, document.lines, list(document.repeated)
        given = self.mapping(document.value, "")
        self.lists_arms = given.get("arms") is not None
        self.given = {name: self.mapping(given.get(name), name) for name in SECTIONS}
        for name in map(str, given):
            if name not in SECTIONS:
                self.refuse(unknown_name(name, list(SECTIONS)), name)

    def selectors(self) -> dict[str, dict[str, Any]]:
        """The options of each selector that any file names; this file's are validated."""
        options = dict(_shipped()["selectors"])
        for name, given in self.given["selectors"].items():
            field = f"selectors.{name}"
            if name not in SELECTORS:
                self.refuse(unknown_name(str(name), sorted(SELECTORS)), field)
                continue
            options[name] = _over(options.get(name, {}), self.mapping(given, field))
            self.validated(SELECTORS[name].options_model, options[name], field)
        return options

    def arm(
        self, name: Any, defaults: dict[str, Any], selectors: dict[str, dict[str, Any]]
    ) -> Arm | None:
        """One arm over the shipped arm of that name, over the defaults; None if it is faulty."""
        field = f"arms.{name}"
        if not ARM_PATTERN.fullmatch(str(name)):
            stages = f"where stage is one of {', '.join(STAGES)}."
            form = "Write stage.selector or stage.selector-variant"
            return self.refuse(f"This is not the name of an arm. {form}, {stages}", field)
        selector = _selector_of(name)
        if selector not in SELECTORS:
            reason = f"Its selector {unknown_name(selector, sorted(SELECTORS))}"
            return self.refuse(reason, field)
        own = self.mapping(self.given["arms"].get(name), field)
        settings = _with_training(_shipped()["arms"].get(name) or {}, own)
        settings = _with_training(defaults, settings)
        given = self.mapping(settings.get("options"), f"{field}.options")
        options = self.validated(
            SELECTORS[selector].options_model,
            _over(selectors.get(selector, {}), given),
            f"{field}.options",
            inherited_from=f"selectors.{selector}",
        )
        settings["options"] = options.model_dump(mode="json") if options else {}
        sound = self.validated(ArmSettings, settings, field, inherited_from="defaults")
        if sound is None or options is None:
            return None
        return self.validated(Arm, settings | {"name": name}, field)

    def mapping(self, value: Any, field: str) -> dict[str, Any]:
        """A value that has to be a mapping; empty where nothing is given, or anything else."""
        if value is not None and not isinstance(value, dict):
            self.refuse(f"This must be a mapping of names to values (got {value!r}).", field)
        return value if isinstance(value, dict) else {}

    def validated(
        self, model: type[T], value: Any, field: str, inherited_from: str = ""
    ) -> T | None:
        """The value as its model, or None after its faults are collected.

        A fault names the field that holds the value: the one below `field` if this file gives it,
        else the one below `inherited_from`.
        """
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for fault in faults_of(error, model, parent=field):
                place = str(fault.field)
                elsewhere = inherited_from + place.removeprefix(field)
                if inherited_from and not self.line_of(place, field):
                    place = elsewhere if self.line_of(elsewhere, inherited_from) else place
                self.refuse(fault.reason, place)
            return None

    def refuse(self, reason: str, field: str) -> None:
        """Collect one fault, with the line of the field or of what holds it."""
        self.faults.append(Fault(reason, self.file, self.line_of(field), field or None))

    def line_of(self, field: str, below: str = "") -> int | None:
        """The line of a field, or of the nearest field around it that lies below another."""
        while field and field != below:
            if field in self.lines:
                return self.lines[field]
            field = field.rpartition(".")[0]
        return None


def _selector_of(name: str) -> str:
    return name.split(".", 1)[1].split("-", 1)[0]


def _with_training(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` over `base`, where training is told how long it takes only once.

    `steps`, `epochs` and `preset` answer the same question, so that settings which give one of
    them inherit none of them. A preset is a complete set of values and inherits nothing.
    """
    own, inherited = settings.get("training"), base.get("training")
    if isinstance(own, dict) and isinstance(inherited, dict):
        if own.get("preset") is not None:
            inherited = {}
        elif own.get("steps") is not None or own.get("epochs") is not None:
            inherited = {k: v for k, v in inherited.items() if k not in ("steps", "epochs")}
        base = base | {"training": inherited}
    return _over(base, settings)


def _over(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` over `base`, mapping by mapping; an empty entry of a mapping says nothing."""
    result = dict(base)
    for key, value in settings.items():
        if isinstance(result.get(key), dict) and (value is None or isinstance(value, dict)):
            value = _over(result[key], value or {})
        result[key] = value
    return result
