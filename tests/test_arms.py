"""`arms.yaml`: what ships loads, what is wrong is said whole, what is left out has a default."""

from pathlib import Path

import pytest
import yaml

import delift_pipeline
from delift_pipeline.arms import Arms, load_arms, load_arms_file, read_arms
from delift_pipeline.errors import Refused
from delift_pipeline.selection.options import STAGES
from delift_pipeline.storage.home import Home

PACKAGE = Path(delift_pipeline.__file__).parent
SHIPPED = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("arms*.yaml"))
TRACKED_LIMIT = 12


def arms_of(text: str) -> Arms:
    return read_arms(text, "arms.yaml")


def faults_of(text: str) -> dict[str, str]:
    """Field -> reason of a refused file."""
    with pytest.raises(Refused) as refused:
        arms_of(text)
    assert all(fault.file == "arms.yaml" for fault in refused.value.faults)
    return {fault.field or "": fault.reason for fault in refused.value.faults}


def test_both_files_of_the_package_are_found() -> None:
    assert {"defaults/arms.yaml", "demo/arms.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads_with_random_full_and_delift_in_each_stage(name: str) -> None:
    arms = load_arms_file(PACKAGE / name)
    assert len(arms.names) == len(set(arms.names)) <= TRACKED_LIMIT
    for stage in STAGES:
        assert {"random", "full", "delift"} <= {arm.selector for arm in arms.of_stages((stage,))}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_arm_of_a_stage_differs_in_the_choice_only(name: str) -> None:
    arms = load_arms_file(PACKAGE / name)
    for field in ("seed", "training", "evaluation"):
        assert len({str(getattr(arm, field)) for arm in arms}) == 1, field
    assert {arm.budget for arm in arms if arm.selector == "full"} == {"full"}
    assert len({arm.budget for arm in arms if arm.selector != "full"}) == 1


def test_package_default_is_used_without_a_home_file(home: Home) -> None:
    assert load_arms(home) == load_arms_file(PACKAGE / "defaults" / "arms.yaml")


def test_homes_own_file_replaces_the_default(home: Home) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text("arms: {instruction_tuning.random: {training: {steps: 2}}}\n")
    assert load_arms(home).names == ["instruction_tuning.random"]


def test_home_of_the_environment_is_used(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text("arms: {continual.full: {training: {steps: 2}}}\n")
    monkeypatch.setenv("DELIFT_HOME", str(home.root))
    assert load_arms().names == ["continual.full"]


def test_all_faults_of_a_file_come_at_once_with_their_fields() -> None:
    faults = faults_of(
        """
        plan: {coverage: most, neighbours: 0}
        colours: [red]
        defaults: {training: {steps: 2}}
        arms:
          instruction_tuning.best: {}
          finetuning.random: {}
          instruction_tuning.random: {budget: -1, seed: many}
          instruction_tuning.full: {training: {rank: 0, depth: 3}}
          instruction_tuning.delift: {options: {eta: -1, colour: red}, speed: 9}
        """
    )
    assert set(faults) >= {
        "plan.coverage",
        "plan.neighbours",
        "colours",
        "arms.instruction_tuning.best",
        "arms.finetuning.random",
        "arms.instruction_tuning.random.seed",
        "arms.instruction_tuning.full.training.rank",
        "arms.instruction_tuning.full.training.depth",
        "arms.instruction_tuning.delift.options.eta",
        "arms.instruction_tuning.delift.options.colour",
        "arms.instruction_tuning.delift.speed",
    }
    assert any(field.startswith("arms.instruction_tuning.random.budget") for field in faults)
    assert "delift" in faults["arms.instruction_tuning.best"]
    assert "stage.selector" in faults["arms.finetuning.random"]


def test_an_unknown_field_is_answered_with_those_there_are() -> None:
    faults = faults_of(
        """
        arms:
          instruction_tuning.full: {training: {stepz: 3}}
          instruction_tuning.delift: {options: {diagonl: keep}, seeds: 9}
        """
    )
    for field, meant, other in (
        ("full.training.stepz", "steps", "learning_rate"),
        ("delift.options.diagonl", "diagonal", "optimizer"),
        ("delift.seeds", "seed", "budget"),
    ):
        reason = faults[f"arms.instruction_tuning.{field}"]
        assert f"mean '{meant}'" in reason and other in reason


@pytest.mark.parametrize(
    "text", ["", "[]", "arms: []", "arms:", "plan: {}", "- arms", "arms: {a: [}", "arms: text"]
)
def test_a_file_without_a_mapping_of_arms_is_refused(text: str) -> None:
    assert len(faults_of(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "defaults: 3\narms: {instruction_tuning.random: {}}",
        "selectors: [delift]\narms: {instruction_tuning.random: {training: {steps: 1}}}",
        "selectors: {delift: 3}\narms: {instruction_tuning.delift: {training: {steps: 1}}}",
        "arms: {instruction_tuning.random: 3}",
        "arms: {instruction_tuning.random: {training: 3}}",
        "arms: {instruction_tuning.delift: {training: {steps: 1}, options: 3}}",
        "arms: {3: {}}",
        "plan: 3\narms: {instruction_tuning.random: {training: {steps: 1}}}",
    ],
)
def test_a_value_of_the_wrong_kind_is_a_fault_and_no_crash(text: str) -> None:
    assert faults_of(text)


@pytest.mark.parametrize(
    "selectors", ["{delfit: {eta: 2}}", "{delift: {colour: red}}"], ids=["name", "option"]
)
def test_a_wrong_entry_among_the_selectors_is_a_fault(selectors: str) -> None:
    text = (
        f"selectors: {selectors}\narms: {{instruction_tuning.delift: {{training: {{steps: 1}}}}}}"
    )
    assert faults_of(text)


@pytest.mark.parametrize("budget", [0, -1, 1.5, ".nan", ".inf", "half", "[1]", "true"])
def test_a_budget_that_means_nothing_is_a_fault(budget: object) -> None:
    text = f"arms: {{instruction_tuning.random: {{training: {{steps: 1}}, budget: {budget}}}}}"
    assert all(
        field.startswith("arms.instruction_tuning.random.budget") for field in faults_of(text)
    )


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
    assert arm.kin == "instruction_tuning.delift-eta_2"


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    arms = arms_of("arms: {continual.full: {training: {steps: 1}}}")
    with pytest.raises(Refused, match=r"no arm is named 'nobody'.*continual\.full"):
        arms.arm("nobody")


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


def test_duplicate_arms_are_refused() -> None:
    one = "  continual.full: {training: {steps: 1}}\n"
    text = f"arms:\n{one}{one}"
    assert faults_of(text)


def test_every_comment_in_the_default_file_names_a_real_option() -> None:
    document = yaml.safe_load((PACKAGE / "defaults" / "arms.yaml").read_text(encoding="utf-8"))
    arms = load_arms_file(PACKAGE / "defaults" / "arms.yaml")
    for selector, options in document["selectors"].items():
        arm = next(arm for arm in arms if arm.selector == selector)
        assert set(options) <= set(arm.options)
