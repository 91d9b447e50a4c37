"""Faults of `arms.yaml`: each is reported with its field and line, all of a file at once."""

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.stages.arms import Arms, load_arms, read_arms


def arms_of(text: str) -> Arms:
    return read_arms(text, "arms.yaml")


def faults_of(text: str) -> dict[str, str]:
    """Field -> reason of a refused file."""
    with pytest.raises(InputError) as refused:
        arms_of(text)
    assert all(fault.file == "arms.yaml" for fault in refused.value.faults)
    return {fault.field or "": fault.reason for fault in refused.value.faults}


def test_a_faulty_default_is_reported_once_where_it_is_given() -> None:
    text = """
defaults:
  training: {rank: 0}
  budget: [1]
selectors:
  delift: {colour: red}
  less: {colour: red}
  delfit: {}
"""
    with pytest.raises(InputError) as refused:
        arms_of(text)
    assert [(fault.line, fault.field) for fault in refused.value.faults] == [
        (3, "defaults.training.rank"),
        (4, "defaults.budget"),
        (6, "selectors.delift.colour"),
        (7, "selectors.less.colour"),
        (8, "selectors.delfit"),
    ]


def test_an_unknown_field_is_answered_with_the_valid_ones() -> None:
    faults = faults_of("arms: {continual.delift: {training: {rnk: 1}, options: {et: 1}, name: x}}")
    assert "'rank'" in faults["arms.continual.delift.training.rnk"]
    assert "'eta'" in faults["arms.continual.delift.options.et"]
    assert "budget" in faults["arms.continual.delift.name"]


@pytest.mark.parametrize(
    ("text", "line"),
    [("plan:\n  seed: [1\narms: {}", 3), ("plan: {}\n\tx: 1", 2), ("a: 1\n---\nb: 1", 2)],
)
def test_a_syntax_error_is_one_line_that_names_its_line(text: str, line: int) -> None:
    with pytest.raises(InputError) as refused:
        arms_of(text)
    (fault,) = refused.value.faults
    assert fault.line == line and "YAML" in fault.reason and "\n" not in fault.reason


@pytest.mark.parametrize("text", ["a: 2024-99-99", "a: \x00", "defaults: &a {training: *a}"])
def test_text_that_yaml_cannot_build_is_a_fault_and_no_crash(text: str) -> None:
    assert faults_of(text)


def test_a_file_that_is_not_utf_8_is_refused(home: Home) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_bytes("# größer\narms: {}".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        load_arms(home)


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
    "text", ["[]", "arms: []", "- arms", "arms: {a: [}", "arms: text", "words", "a: 1\n---\nb: 1"]
)
def test_a_file_that_is_no_mapping_of_arms_is_refused(text: str) -> None:
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


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    arms = arms_of("arms: {continual.full: {training: {steps: 1}}}")
    with pytest.raises(InputError, match=r"no arm is named 'nobody'.*continual\.full"):
        arms.arm("nobody")


def test_what_is_given_twice_is_refused_with_both_lines() -> None:
    one = "  continual.full: {training: {steps: 1}}\n"
    with pytest.raises(InputError) as refused:
        arms_of(f"arms:\n{one}{one}plan: {{neighbours: 0}}\n")
    repeated, other = refused.value.faults
    assert (repeated.line, repeated.field) == (3, "arms.continual.full")
    assert "line 2" in repeated.reason
    assert other.field == "plan.neighbours"
