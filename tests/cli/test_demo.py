"""`delift demo` in a home that has arms of its own."""

from pathlib import Path

from tests.conftest import Delift


def test_faulty_arms_are_refused_before_anything_is_written(delift: Delift, tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text("arms: {continual.random: {budget: -1}}\n")
    *_, fault = delift("demo", "--home", tmp_path).faults
    assert fault.startswith("arms.yaml:1: arms.continual.random.budget")
    assert [path.name for path in tmp_path.iterdir()] == ["arms.yaml"]
