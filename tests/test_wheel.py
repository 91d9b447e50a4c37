"""What is installed: the three packages with all their data, and nothing of the repository else."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("delift_pipeline", "assets", "resources")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "benchmarks", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(tmp_path / "installed")
    files = [path for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()]
    assert inside == {path.relative_to(source).as_posix() for path in files}
    assert {"delift_pipeline/demo/model/model.safetensors", "delift_pipeline/bench/quality.py"} < (
        inside
    )
    refusal = installed(tmp_path / "installed", "bench", "quality", "--quick")
    assert refusal.returncode == 2
    assert "the project's repository" in refusal.stderr
    assert "Traceback" not in refusal.stderr
    table = installed(tmp_path / "installed", "compare", "--experiment", "budget")
    assert table.returncode == 2
    assert "no table of budget" in table.stderr


def installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program from the packages in a folder, away from the checkout."""
    command = [sys.executable, "-P", "-m", "delift_pipeline.cli.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_the_packages_import_nothing_that_is_not_installed() -> None:
    absent = {"benchmarks", "examples", "tests", "tools"}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(node)
        if name.split(".")[0] in absent
    ]
    assert wrong == []


def imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names]
