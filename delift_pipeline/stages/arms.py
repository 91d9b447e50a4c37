"""Arms: the tracked experiments of a home, read from `arms.yaml`."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from delift_pipeline.core.errors import Fault, InputError
from delift_pipeline.core.home import ARM_PATTERN, Home
from delift_pipeline.core.validation import (
    check_webhook,
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
from delift_pipeline.selection.run import check_budget
from delift_pipeline.selection.selector import Traits
from delift_pipeline.training.options import TrainingOptions

T = TypeVar("T", bound=BaseModel)

SECTIONS = ("plan", "automation", "defaults", "selectors", "arms")

COMPARISONS = tuple(
    name for name, one in SELECTORS.items() if one.traits.reference in ("random", "whole")
)
"""Selectors of the reference arms `random` and `full`. They run first, for other reports to use."""


def _call_check(check: Callable[..., object], *values: Any) -> None:
    """Call a check, and raise its refusal as the `ValueError` that pydantic expects."""
    try:
        check(*values)
    except InputError as refused:
        raise ValueError(refused.faults[0].reason) from refused


class PlanOptions(BaseModel):
    """How pairs are planned for a version.

    Attributes:
        coverage: Which pairs to plan: `neighbours`, `all`, or `auto` (all if an enabled arm needs
            every pair and the pool is within `dense_limit`). None uses the version's own value.
        dense_limit: The largest pool for which `auto` plans every pair.
        neighbours: How many near prompts are scored for each record.
        embedder: `tfidf`, `minilm` (all-MiniLM-L6-v2), or a sentence-transformers folder or hub id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    coverage: Literal["auto", "neighbours", "all"] | None = None
    dense_limit: int = Field(default=2000, ge=1)
    neighbours: int = Field(default=20, ge=1)
    embedder: str = "tfidf"

    @field_validator("embedder")
    @classmethod
    def _check_embedder(cls, embedder: str) -> str:
        if embedder == MODEL:
            reason = (
                "Pairs are planned without the model. Choose tfidf or minilm here. The embedder"
            )
            raise ValueError(f"{reason} `{MODEL}` can be set in the options of a selector.")
        return embedder


class AutomationOptions(BaseModel):
    """What the sensors start by themselves once they are switched on.

    Attributes:
        train: Whether arms are also trained and evaluated, or only subsets are selected.
        seconds: The least time between two evaluations of a sensor.
        retries: How often a step is retried after a failure that may be temporary.
        retry_seconds: The wait before the first retry. Each further wait is twice as long.
        isolate_steps: Run each step in a process of its own, which frees its memory at the end.
            False saves some seconds for each step.
        webhook: The http(s) address that alerts are sent to, unless $DELIFT_ALERT_URL is set.
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
    def _check_webhook(cls, webhook: str | None) -> str | None:
        if webhook is not None:
            _call_check(check_webhook, webhook)
        return webhook


class ArmSettings(BaseModel):
    """The settings of one arm in `arms.yaml`.

    Attributes:
        enabled: False keeps an arm in the list but starts no more runs of it.
        budget: A number below 1 is a share of the pool, an integer from 1 is a count. `full` takes
            all records, `20000tokens` limits the tokens, and `auto` (or `auto:0.05`) stops when the
            gains become small.
        rules: Pinned and excluded records, quotas and caps.
        balance: Further columns to compare pool and subset by. The version must keep them.
        seed: The seed of random choices of the selector and of training.
        options: All options of the selector, validated by the selector's own model.
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
    def _check_budget(cls, budget: BudgetText) -> BudgetText:
        _call_check(parse_budget, budget, sys.maxsize)
        return budget


class Arm(ArmSettings):
    """One arm: what it selects, how it trains and how it is evaluated.

    Attributes:
        name: `stage.selector[-variant]`. Stored results use it, so an arm is never renamed.
    """

    name: str

    @model_validator(mode="after")
    def _check_budget_and_rules(self) -> "Arm":
        settings = (self.budget, self.rules.has_rules, sys.maxsize, self.options)
        _call_check(check_budget, self.selector, self.stage, *settings)
        return self

    @property
    def traits(self) -> Traits:
        """The traits of the arm's selector."""
        return SELECTORS[self.selector].traits

    @property
    def stage(self) -> Stage:
        """The fine-tuning stage: the part of the name before the first dot."""
        return cast(Stage, self.name.split(".", 1)[0])

    @property
    def selector(self) -> str:
        """The selector's name, without the variant."""
        return _selector_of(self.name)


@dataclass(frozen=True)
class Arms:
    """All arms of a home, and the options that they share."""

    plan: PlanOptions
    automation: AutomationOptions
    arms: tuple[Arm, ...]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self.arms)

    @property
    def names(self) -> list[str]:
        """The names of all arms, enabled or not, in the order of the file."""
        return [arm.name for arm in self.arms]

    def arm(self, name: str) -> Arm:
        """Return the arm of that name.

        Raises:
            InputError: there is no such arm. The message lists the arms that exist.
        """
        if name in self.names:
            return self.arms[self.names.index(name)]
        reason = f"no arm is named {name!r}; arms.yaml has: {', '.join(self.names)}"
        raise InputError(reason, field="arm")

    def of_stages(self, stages: tuple[str, ...]) -> list[Arm]:
        """Return the enabled arms of these stages, the reference arms random and full first."""
        chosen = [arm for arm in self.arms if arm.enabled and arm.stage in stages]
        return sorted(chosen, key=lambda arm: arm.selector not in COMPARISONS)

    def list_disabled(self, stages: tuple[str, ...]) -> list[Arm]:
        """Return the disabled arms of these stages, in the order of the file."""
        return [arm for arm in self.arms if not arm.enabled and arm.stage in stages]


def load_arms(home: Home | None = None) -> Arms:
    """Load the arms of a home: the settings of its own `arms.yaml` replace the shipped ones.

    Raises:
        InputError: the file has faults. They are reported together, each with its field.
    """
    own = (home or Home.at()).arms_file
    if own.is_file():
        return read_arms(read_text(own, own.name), own.name)
    return read_arms("", "arms.yaml (package default)")


@cache
def _shipped_settings() -> dict[str, Any]:
    """Return the settings of the shipped `arms.yaml`."""
    shipped = resources.files("delift_pipeline.defaults").joinpath("arms.yaml")
    return parse_yaml(shipped.read_text("utf-8"), "arms.yaml").value


def read_arms(text: str, file: str) -> Arms:
    """Read the arms of an `arms.yaml`. A setting that it lacks has the value of the shipped file.

    `plan`, `automation`, `defaults` and `selectors` inherit field by field. A file with an `arms:`
    block lists all arms of its home, and each inherits from the shipped arm of the same name, but
    is enabled unless the file disables it. A file without that block keeps the shipped arms.

    Raises:
        InputError: the file has faults. They are reported together.
    """
    reader, shipped = _ArmsReader(text, file), _shipped_settings()
    sections = reader.sections
    plan = reader.validate(PlanOptions, _merge(shipped["plan"], sections["plan"]), "plan")
    automation = _merge(shipped["automation"], sections["automation"])
    automation = reader.validate(AutomationOptions, automation, "automation")
    defaults = _merge_settings(shipped["defaults"], sections["defaults"])
    selectors = reader.selectors()
    names = sections["arms"] if reader.lists_arms else shipped["arms"]
    arms = [reader.arm(name, defaults, selectors) for name in names]
    if reader.faults:
        raise InputError(*sorted(dict.fromkeys(reader.faults), key=lambda fault: fault.line or 0))
    # Invalid options are a fault, so these are valid here.
    assert plan is not None and automation is not None
    return Arms(plan, automation, tuple(filter(None, arms)))


class _ArmsReader:
    """Reads one `arms.yaml` and collects every fault in it."""

    def __init__(self, text: str, file: str) -> None:
        document = parse_yaml(text, file)
        self.file, self.lines, self.faults = file, document.lines, list(document.repeated)
        settings = self.mapping(document.value, "")
        self.lists_arms = settings.get("arms") is not None
        self.sections = {name: self.mapping(settings.get(name), name) for name in SECTIONS}
        for name in map(str, settings):
            if name not in SECTIONS:
                self.refuse(unknown_name(name, list(SECTIONS)), name)

    def selectors(self) -> dict[str, dict[str, Any]]:
        """Return the options of each selector, and validate those that this file sets."""
        options = dict(_shipped_settings()["selectors"])
        for name, own in self.sections["selectors"].items():
            field = f"selectors.{name}"
            if name not in SELECTORS:
                self.refuse(unknown_name(str(name), sorted(SELECTORS)), field)
                continue
            options[name] = _merge(options.get(name, {}), self.mapping(own, field))
            self.validate(SELECTORS[name].options_model, options[name], field)
        return options

    def arm(
        self, name: Any, defaults: dict[str, Any], selectors: dict[str, dict[str, Any]]
    ) -> Arm | None:
        """Return one arm, or None if it has a fault.

        It inherits from the shipped arm of its name, and that from the defaults.
        """
        field = f"arms.{name}"
        if not ARM_PATTERN.fullmatch(str(name)):
            stages = f"where stage is one of {', '.join(STAGES)}."
            form = "Write stage.selector or stage.selector-variant"
            return self.refuse(f"This is not the name of an arm. {form}, {stages}", field)
        selector = _selector_of(name)
        if selector not in SELECTORS:
            reason = f"Its selector {unknown_name(selector, sorted(SELECTORS))}"
            return self.refuse(reason, field)
        own = self.mapping(self.sections["arms"].get(name), field)
        shipped = dict(_shipped_settings()["arms"].get(name) or {})
        if self.lists_arms:
            shipped.pop("enabled", None)  # Whoever lists an arm wants it.
        settings = _merge_settings(shipped, own)
        settings = _merge_settings(defaults, settings)
        own_options = self.mapping(settings.get("options"), f"{field}.options")
        options = self.validate(
            SELECTORS[selector].options_model,
            _merge(selectors.get(selector, {}), own_options),
            f"{field}.options",
            inherited_from=f"selectors.{selector}",
        )
        settings["options"] = options.model_dump(mode="json") if options else {}
        valid = self.validate(ArmSettings, settings, field, inherited_from="defaults")
        if valid is None or options is None:
            return None
        return self.validate(Arm, settings | {"name": name}, field)

    def mapping(self, value: Any, field: str) -> dict[str, Any]:
        """Return a value that must be a mapping; an empty one if it is absent or a fault."""
        if value is not None and not isinstance(value, dict):
            self.refuse(f"This must be a mapping of names to values (got {value!r}).", field)
        return value if isinstance(value, dict) else {}

    def validate(
        self, model: type[T], value: Any, field: str, inherited_from: str = ""
    ) -> T | None:
        """Return the value as a model, or collect its faults and return None.

        A fault names the field below `field` if this file sets it there, else the field below
        `inherited_from`.
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
        """Collect one fault, with the line of its field or of the nearest field around it."""
        self.faults.append(Fault(reason, self.file, self.line_of(field), field or None))

    def line_of(self, field: str, below: str = "") -> int | None:
        """Return the line of a field, or of the nearest field around it that is inside `below`."""
        while field and field != below:
            if field in self.lines:
                return self.lines[field]
            field = field.rpartition(".")[0]
        return None


def _selector_of(name: str) -> str:
    return name.split(".", 1)[1].split("-", 1)[0]


def _merge_settings(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Merge `settings` into `base`, so that the length of training is set only once.

    `steps` and `epochs` both set that length, so settings with one of them inherit neither. A
    preset is a complete set of values, so settings with a preset inherit no training value.
    """
    own, inherited = settings.get("training"), base.get("training")
    if isinstance(own, dict) and isinstance(inherited, dict):
        if own.get("preset") is not None:
            inherited = {}
        elif own.get("steps") is not None or own.get("epochs") is not None:
            inherited = {k: v for k, v in inherited.items() if k not in ("steps", "epochs")}
        base = base | {"training": inherited}
    return _merge(base, settings)


def _merge(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Merge `settings` into `base`. An empty entry keeps the mapping of `base`."""
    result = dict(base)
    for key, value in settings.items():
        if isinstance(result.get(key), dict) and (value is None or isinstance(value, dict)):
            value = _merge(result[key], value or {})
        result[key] = value
    return result
