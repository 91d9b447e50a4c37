"""Arms: one tracked experiment cell each (stage x selector x options), read from `arms.yaml`."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from delift_pipeline.alerts import checked_webhook
from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.selection.budget import BudgetText, parse_budget
from delift_pipeline.selection.model_embedding import MODEL
from delift_pipeline.selection.options import STAGES, Stage
from delift_pipeline.selection.registry import SELECTORS
from delift_pipeline.selection.rule_options import RuleOptions
from delift_pipeline.selection.run import refuse_impossible
from delift_pipeline.storage.home import ARM_PATTERN, Home
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.validation import faults_of

T = TypeVar("T", bound=BaseModel)

SECTIONS = {"plan", "automation", "defaults", "selectors", "arms"}

COMPARISONS = ("random", "full")
"""Selectors that every other arm's report is read beside, so they are made first."""


class PlanOptions(BaseModel):
    """How pairs are planned for a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coverage: Literal["auto", "neighbours", "all"] | None = Field(
        default=None,
        description="Overrides the versions' own coverage: `neighbours`, `all`, or `auto` (all "
        "where an enabled arm needs every pair and the pool is within dense_limit).",
    )
    dense_limit: int = Field(
        default=2000,
        ge=1,
        description="Largest pool for which every pair is scored when an arm needs it.",
    )
    neighbours: int = Field(default=20, ge=1, description="Nearest prompts scored per record.")
    embedder: str = Field(
        default="tfidf",
        description="`tfidf`, `minilm`, or a sentence-transformers folder or hub id.",
    )

    @field_validator("embedder")
    @classmethod
    def _needs_no_model(cls, embedder: str) -> str:
        if embedder == MODEL:
            said = "pairs are planned without the model: choose tfidf or minilm here"
            raise ValueError(said + ", and model in a selector's options")
        return embedder


class AutomationOptions(BaseModel):
    """What the sensors may start by themselves, once they are switched on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: bool = Field(
        default=False, description="Train and evaluate the arms too, not only select."
    )
    seconds: int = Field(
        default=30, ge=1, description="Least time between two looks of a sensor, in seconds."
    )
    retries: int = Field(
        default=2,
        ge=0,
        description="How often a step is tried again after a failure that may pass.",
    )
    retry_seconds: float = Field(
        default=30.0, ge=0, description="Wait before the first retry, doubled before each further."
    )
    isolate_steps: bool = Field(
        default=True,
        description="Each step of a run in a process of its own, whose memory is given back; "
        "false saves some seconds a step.",
    )
    webhook: str | None = Field(
        default=None,
        description="An http(s) address that alerts are posted to; $DELIFT_ALERT_URL comes first.",
    )

    @field_validator("webhook")
    @classmethod
    def _can_be_posted_to(cls, webhook: str | None) -> str | None:
        try:
            return None if webhook is None else checked_webhook(webhook)
        except Refused as refused:
            raise ValueError(refused.faults[0].reason) from refused


class Arm(BaseModel):
    """One arm: what is selected, how it is trained and how it is measured.

    Attributes:
        name: `stage.selector[-variant]`; never renamed.
        enabled: False keeps a retired arm listed and asks for no more runs of it.
        budget: Below 1 a share of the pool, an integer from 1 a count, `full` for all,
            `20000tokens`, or `auto` (`auto:0.05`): as many as pay.
        rules: Records pinned in or out, quotas and caps.
        balance: Columns that the version keeps, to compare pool and subset by beside the usual.
        seed: Seeds the selector (where it draws) and the training.
        options: The selector's options, complete and validated by its own model.
        training: Fine-tuning options.
        evaluation: Evaluation options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    enabled: bool = True
    budget: BudgetText = 0.3
    rules: RuleOptions = Field(default_factory=RuleOptions)
    balance: tuple[str, ...] = ()
    seed: int = 0
    options: dict[str, Any] = Field(default_factory=dict)
    training: TrainingOptions
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions)

    @field_validator("budget")
    @classmethod
    def _means_something(cls, budget: BudgetText) -> BudgetText:
        try:
            parse_budget(budget, sys.maxsize)
        except Refused as refused:
            raise ValueError(refused.faults[0].reason) from refused
        return budget

    @model_validator(mode="after")
    def _can_be_kept_to(self) -> "Arm":
        try:
            refuse_impossible(
                self.selector,
                self.stage,
                self.budget,
                self.rules.asked,
                sys.maxsize,
                self.options,
            )
        except Refused as refused:
            raise ValueError(refused.faults[0].reason) from refused
        return self

    @property
    def stage(self) -> Stage:
        """The part of the name before the first dot."""
        return cast(Stage, self.name.split(".", 1)[0])

    @property
    def selector(self) -> str:
        """The selector's name, without the variant."""
        return _selector_of(self.name)

    @property
    def kin(self) -> str:
        """The instruction-tuning arm of the same selector and variant, as first versions have."""
        return f"instruction_tuning.{self.name.split('.', 1)[1]}"


@dataclass(frozen=True)
class Arms:
    """All arms and the plan options they share."""

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
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise Refused(
            Fault(f"no arm is named {name!r}; arms.yaml has: {', '.join(self.names)}", field="arm")
        )

    def of_stages(self, stages: tuple[str, ...]) -> list[Arm]:
        """Enabled arms of these stages, the comparisons (random, full) first."""
        chosen = [arm for arm in self.arms if arm.enabled and arm.stage in stages]
        return sorted(chosen, key=lambda arm: arm.selector not in COMPARISONS)


def load_arms(home: Home | None = None) -> Arms:
    """The arms of a home: its own `arms.yaml` where there is one, else the package's.

    Raises:
        Refused: every fault of the file at once, each with its field.
    """
    own = (home or Home.at()).arms_file
    if own.is_file():
        return read_arms(own.read_text(encoding="utf-8"), own.name)
    return read_arms(default_text(), "arms.yaml (package default)")


def default_text() -> str:
    """The shipped `arms.yaml`."""
    return resources.files("delift_pipeline.defaults").joinpath("arms.yaml").read_text("utf-8")


def load_arms_file(path: Path) -> Arms:
    """The arms of one file."""
    return read_arms(path.read_text(encoding="utf-8"), str(path))


def read_arms(text: str, file: str) -> Arms:
    """Parse and validate the whole of an `arms.yaml`.

    Raises:
        Refused: every fault at once.
    """
    try:
        document = yaml.load(text, _UniqueKeys) or {}
    except yaml.YAMLError as error:
        raise Refused(Fault(f"not YAML: {error}", file=file)) from error
    if not isinstance(document, dict) or not isinstance(document.get("arms"), dict):
        raise Refused(Fault("needs a mapping `arms:` from arm name to its settings", file=file))
    if wrong := _kind_faults(document, file):
        raise Refused(*wrong)
    arms, faults = _parse_arms(document, file)
    plan = _validated(PlanOptions, document.get("plan") or {}, file, "plan", faults)
    given = document.get("automation") or {}
    automation = _validated(AutomationOptions, given, file, "automation", faults)
    reason = f"is no selector; there are: {', '.join(sorted(SELECTORS))}"
    strange = set(document.get("selectors") or {}) - set(SELECTORS)
    faults += [Fault(reason, file, field=f"selectors.{name}") for name in strange]
    unknown = set(document) - SECTIONS
    reason = f"is not a section; there are {', '.join(sorted(SECTIONS))}"
    faults += [Fault(reason, file, field=str(key)) for key in unknown]
    if faults:
        raise Refused(*faults)
    return Arms(
        plan=plan or PlanOptions(),
        automation=automation or AutomationOptions(),
        arms=tuple(arms),
    )


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(None, None, f"{key} stands twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


def _kind_faults(document: dict[str, Any], file: str) -> list[Fault]:
    """Whatever has to be a mapping and is not; nothing else can be read then."""
    given = {name: document.get(name) for name in ("defaults", "selectors")}
    for name, settings in document["arms"].items():
        given[f"arms.{name}"] = settings
        if isinstance(settings, dict):
            parts = ("training", "evaluation", "options", "rules")
            given |= {f"arms.{name}.{part}": settings.get(part) for part in parts}
    if isinstance(given["selectors"], dict):
        given |= {f"selectors.{name}": options for name, options in given["selectors"].items()}
    return [
        Fault(f"is no mapping (got {value!r})", file, field=field)
        for field, value in given.items()
        if value is not None and not isinstance(value, dict)
    ]


def _parse_arms(document: dict[str, Any], file: str) -> tuple[list[Arm], list[Fault]]:
    arms: list[Arm] = []
    faults: list[Fault] = []
    selectors = document.get("selectors") or {}
    for name, settings in document["arms"].items():
        where = f"arms.{name}"
        reason = _name_fault(str(name))
        if reason:
            faults.append(Fault(reason, file, field=where))
            continue
        merged = _with_defaults(document.get("defaults") or {}, settings or {}) | {"name": name}
        selector = _selector_of(name)
        given = _merged(selectors.get(selector) or {}, merged.get("options") or {})
        options = _validated(
            SELECTORS[selector].options_model, given, file, f"{where}.options", faults
        )
        merged["options"] = options.model_dump(mode="json") if options else {}
        arm = _validated(Arm, merged, file, where, faults)
        if arm is not None:
            arms.append(arm)
    return arms, faults


def _selector_of(name: str) -> str:
    return name.split(".", 1)[1].split("-", 1)[0]


def _name_fault(name: str) -> str | None:
    if not ARM_PATTERN.fullmatch(name):
        return f"is no arm name: write stage.selector[-variant], stage one of {', '.join(STAGES)}"
    if _selector_of(name) not in SELECTORS:
        known = ", ".join(sorted(SELECTORS))
        return f"selector {_selector_of(name)!r} is unknown; there are: {known}"
    return None


def _validated(model: type[T], value: Any, file: str, where: str, faults: list[Fault]) -> T | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults += faults_of(error, model, file=file, parent=where)
        return None


def _with_defaults(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """An arm's settings over the defaults.

    `steps`, `epochs` and `preset` answer the same question (how much training), so that an arm
    which gives one of them takes none of them from the defaults; a preset takes nothing else.
    """
    own = settings.get("training") or {}
    base = dict(defaults)
    if isinstance(own, dict) and isinstance(base.get("training"), dict):
        if "preset" in own:
            base["training"] = {}
        elif {"steps", "epochs"} & set(own):
            kept = base["training"].items()
            base["training"] = {k: v for k, v in kept if k not in ("steps", "epochs")}
    return _merged(base, settings)


def _merged(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` over `defaults`, mapping by mapping."""
    result = dict(defaults)
    for key, value in settings.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
