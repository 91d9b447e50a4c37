"""`arms.yaml`: the shipped files load, and a file inherits what it does not set."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

import delift_pipeline
from delift_pipeline.core.home import Home
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.lineage.version import fallback_arm
from delift_pipeline.selection.options import STAGES
from delift_pipeline.selection.registry import SELECTORS, needs_of
from delift_pipeline.stages.arms import (
    Arms,
    ArmSettings,
    AutomationOptions,
    PlanOptions,
    load_arms,
    read_arms,
)
from delift_pipeline.training.options import TrainingOptions

PACKAGE = Path(delift_pipeline.__file__).parent
SHIPPED = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("arms*.yaml"))
TRACKED_LIMIT = 12


def shipped_arms(name: str = "defaults/arms.yaml") -> Arms:
    return read_arms((PACKAGE / name).read_text(encoding="utf-8"), name)


def arms_of(text: str) -> Arms:
    return read_arms(text, "arms.yaml")


def test_both_files_of_the_package_are_found() -> None:
    assert {"defaults/arms.yaml", "demo/arms.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_with_random_full_and_delift_in_each_stage(name: str) -> None:
    arms = shipped_arms(name)
    assert len(arms.names) == len(set(arms.names))
    assert sum(arm.enabled for arm in arms) <= TRACKED_LIMIT
    for stage in STAGES:
        assert {"random", "full", "delift"} <= {arm.selector for arm in arms.of_stages((stage,))}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_arm_of_a_stage_differs_in_the_choice_only(name: str) -> None:
    arms = shipped_arms(name)
    for field in ("seed", "training", "evaluation"):
        assert len({str(getattr(arm, field)) for arm in arms}) == 1, field
    assert {arm.budget for arm in arms if arm.selector == "full"} == {"full"}
    assert len({arm.budget for arm in arms if arm.selector != "full"}) == 1


def test_shipped_arms_score_near_pairs_only_and_list_the_papers_arms_disabled() -> None:
    arms = shipped_arms()
    for stage in STAGES:
        enabled = arms.of_stages((stage,))
        kinds = {needs_of(arm.selector, stage, arm.options).self_pairs for arm in enabled}
        assert kinds == {"none", "neighbours"}
        assert f"{stage}.delift-near" in [arm.name for arm in enabled]
        (retired,) = arms.list_disabled((stage,))
        assert retired.name == f"{stage}.delift"
        near = arms.arm(f"{stage}.delift-near")
        assert near.options == retired.options | {"pairs": "neighbours"}


def test_an_arm_that_a_home_lists_is_enabled_unless_the_home_disables_it() -> None:
    arms = arms_of(
        """
        arms:
          instruction_tuning.delift: {}
          task_specific.delift:
          continual.delift: {enabled: false}
        """
    )
    assert [arm.enabled for arm in arms] == [True, True, False]


def test_package_default_is_used_without_a_home_file(home: Home) -> None:
    assert load_arms(home) == shipped_arms()


def test_a_short_file_inherits_everything_it_does_not_give(home: Home) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text("arms:\n  instruction_tuning.random: {budget: 3}\n")
    arms, shipped = load_arms(home), shipped_arms()
    expected = shipped.arm("instruction_tuning.random").model_copy(update={"budget": 3})
    assert list(arms) == [expected]
    assert (arms.plan, arms.automation) == (shipped.plan, shipped.automation)


@pytest.mark.parametrize("text", ["", "arms:", "plan: {neighbours: 5}", "defaults: {seed: 7}"])
def test_a_file_that_lists_no_arms_keeps_the_shipped_ones(text: str) -> None:
    assert arms_of(text).names == shipped_arms().names


def test_a_field_replaces_the_shipped_field_and_leaves_those_beside_it() -> None:
    arms = arms_of(
        """
        plan: {neighbours: 5}
        automation: {train: true}
        defaults: {seed: 7, training: {rank: 4}, evaluation: {metrics: [answer_loss]}}
        selectors: {delift_trusted: {eta: 2.0}}
        """
    )
    shipped = shipped_arms()
    assert arms.plan == shipped.plan.model_copy(update={"neighbours": 5})
    assert arms.automation == shipped.automation.model_copy(update={"train": True})
    for arm, before in zip(arms, shipped, strict=True):
        assert (arm.seed, arm.budget) == (7, before.budget)
        assert arm.training == before.training.model_copy(update={"rank": 4})
        assert arm.evaluation.metrics == ("answer_loss",)
        changed = {"eta": 2.0} if arm.selector == "delift_trusted" else {}
        assert arm.options == before.options | changed


def test_an_arm_inherits_the_shipped_arm_of_its_name() -> None:
    arms = arms_of("defaults: {budget: 0.5}\narms: {continual.full: {}, continual.random: {}}")
    assert [(arm.name, arm.budget) for arm in arms] == [
        ("continual.full", "full"),
        ("continual.random", 0.5),
    ]


@pytest.mark.parametrize(
    ("training", "steps", "epochs", "rate"),
    [
        ("{steps: 5}", 5, None, 2e-4),
        ("{epochs: 2}", None, 2.0, 2e-4),
        ("{preset: demo}", 200, None, 5e-3),
        ("{preset: demo, steps: 9}", 9, None, 5e-3),
        ("{rank: 4, steps: null}", None, 3.0, 2e-4),
        ("null", None, 3.0, 2e-4),
    ],
)
@pytest.mark.parametrize(
    "place", ["defaults: {{training: {0}}}", "arms: {{continual.random: {{training: {0}}}}}"]
)
def test_a_measure_of_training_replaces_the_shipped_one_wherever_it_is_given(
    place: str, training: str, steps: int | None, epochs: float | None, rate: float
) -> None:
    arm = arms_of(place.format(training)).arm("continual.random")
    assert (arm.training.steps, arm.training.epochs) == (steps, epochs)
    assert arm.training.learning_rate == rate


def test_home_of_the_environment_is_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text("arms: {continual.full: {training: {steps: 2}}}\n")
    monkeypatch.setenv("DELIFT_HOME", str(home.root))
    assert load_arms().names == ["continual.full"]


@pytest.mark.parametrize("budget", [0.3, 1, 250, "full"])
def test_a_share_a_count_and_full_are_budgets(budget: object) -> None:
    text = f"arms: {{instruction_tuning.random: {{training: {{steps: 1}}, budget: {budget}}}}}"
    found = arms_of(text).arm("instruction_tuning.random").budget
    assert found == budget and type(found) is type(budget)


def test_settings_merge_from_defaults_to_selectors_to_the_arm() -> None:
    arms = arms_of(
        """
        defaults: {budget: 0.2, seed: 4, training: {steps: 7, rank: 8}, evaluation: {batch_size: 2}}
        selectors: {delift: {eta: 3.0, scaling: min_max}}
        arms:
          task_specific.delift: {options: {eta: 5.0}, training: {rank: 4}}
          task_specific.delift-plain: {seed: 9}
          task_specific.random: {budget: 3}
        """
    )
    own, plain, random = (arms.arm(name) for name in arms.names)
    assert (own.options["eta"], own.options["scaling"]) == (5.0, "min_max")
    assert (own.training.steps, own.training.rank) == (7, 4)
    assert (plain.options["eta"], plain.seed, plain.budget) == (3.0, 9, 0.2)
    assert own.evaluation.batch_size == 2
    assert random.options == {} and random.budget == 3


def test_options_are_complete_so_that_a_later_default_changes_no_arm() -> None:
    (arm,) = arms_of("arms: {instruction_tuning.delift: {training: {steps: 1}}}")
    assert {"utility", "scaling", "diagonal", "eta", "nu", "optimizer"} <= set(arm.options)


def test_an_arms_own_measure_of_training_replaces_the_defaults() -> None:
    arms = arms_of(
        """
        defaults: {training: {epochs: 3, rank: 8}}
        arms:
          instruction_tuning.random: {training: {steps: 5}}
          instruction_tuning.full: {training: {preset: demo}}
          instruction_tuning.delift: {}
        """
    )
    random, full, delift = arms
    assert (random.training.steps, random.training.epochs, random.training.rank) == (5, None, 8)
    assert (full.training.steps, full.training.rank) == (200, 16)
    assert (delift.training.steps, delift.training.epochs) == (None, 3)


def test_names_give_stage_selector_and_kin() -> None:
    (arm,) = arms_of("arms: {continual.delift-eta_2: {training: {steps: 1}}}")
    assert (arm.stage, arm.selector) == ("continual", "delift")
    assert fallback_arm(arm.name) == "instruction_tuning.delift-eta_2"


def test_of_stages_puts_comparisons_first_and_leaves_retired_arms_out() -> None:
    arms = arms_of(
        """
        defaults: {training: {steps: 1}}
        arms:
          instruction_tuning.delift: {}
          continual.delift: {}
          instruction_tuning.random: {}
          instruction_tuning.delift-old: {enabled: false}
          instruction_tuning.full: {}
        """
    )
    found = [arm.name for arm in arms.of_stages(("instruction_tuning",))]
    assert found == [
        "instruction_tuning.random",
        "instruction_tuning.full",
        "instruction_tuning.delift",
    ]
    assert "instruction_tuning.delift-old" in arms.names
    assert arms.arm("instruction_tuning.delift-old").enabled is False


def blocks() -> list[tuple[str, type[BaseModel], dict[str, Any]]]:
    """Every block of options in the shipped file: its name, its model and its values."""
    document = yaml.safe_load((PACKAGE / "defaults" / "arms.yaml").read_text(encoding="utf-8"))
    defaults = document["defaults"]
    training, evaluation = defaults.pop("training"), defaults.pop("evaluation")
    assert training.pop("epochs") == 3  # has no default: steps may be given instead
    return [
        ("plan", PlanOptions, document["plan"]),
        ("automation", AutomationOptions, document["automation"]),
        ("defaults", ArmSettings, defaults),
        ("training", TrainingOptions, training),
        ("evaluation", EvaluationOptions, evaluation),
        *(
            (f"selectors.{name}", SELECTORS[name].options_model, options)
            for name, options in document["selectors"].items()
        ),
    ]


@pytest.mark.parametrize(("name", "model", "options"), blocks(), ids=lambda value: str(value)[:30])
def test_shipped_values_are_the_defaults_of_their_models(
    name: str, model: type[BaseModel], options: dict[str, Any]
) -> None:
    for field, value in options.items():
        default = model.model_fields[field].get_default(call_default_factory=True)
        plain = TypeAdapter(Any).dump_python(default, mode="json")
        if field == "rules":
            plain = {key: held for key, held in plain.items() if held}
        assert plain == value, f"{name}.{field}"


def test_comments_list_every_value_that_an_option_can_take() -> None:
    text = (PACKAGE / "defaults" / "arms.yaml").read_text(encoding="utf-8")
    compared = set()
    for name, model, options in blocks():
        for field in options:
            choices = literal_values(model.model_fields[field].annotation)
            comments = re.findall(rf"^ +{field}: \S+ +# (.*)", text, re.MULTILINE)
            if not choices:
                continue
            listed = [set(re.findall(r"(?:^|\| )([a-z_0-9]+)", one)) for one in comments]
            assert choices in [one - {"null"} for one in listed], f"{name}.{field}: {comments}"
            compared.add(field)
    assert {"optimizer", "objective", "utility", "method", "coverage"} <= compared


def literal_values(annotation: Any) -> set[str]:
    """The strings that a type allows; empty where it is not a choice."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {value for part in get_args(annotation) for value in literal_values(part)}


def test_every_comment_in_the_default_file_names_a_real_option() -> None:
    document = yaml.safe_load((PACKAGE / "defaults" / "arms.yaml").read_text(encoding="utf-8"))
    arms = shipped_arms()
    for selector, options in document["selectors"].items():
        arm = next(arm for arm in arms if arm.selector == selector)
        assert set(options) <= set(arm.options)
