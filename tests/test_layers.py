"""Who may import whom, and that loading the definitions stays cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "library"
# Each layer and the layers it may import, innermost first (library <- partitions, executor,
# automation <- resources <- assets <- jobs, sensors, schedules <- graph, definitions <- cli).
ORDER = (LIBRARY, "wiring", "resources", "assets", "automation", "definitions", "cli")
WIRING = {"partitions", "automation", "executor", "run_process"}
AUTOMATION = {"jobs", "sensors", "schedules"}
HEAVY = ("torch", "transformers", "peft", "vllm", "mlflow", "duckdb", "sentence_transformers")


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("assets", "resources"):
        return parts[0]
    if parts[0] != "delift_pipeline":
        return None
    name = parts[1] if len(parts) > 1 else ""
    if name in WIRING:
        return "wiring"
    if name in AUTOMATION:
        return "automation"
    if name in ("graph", "definitions"):
        return "definitions"
    return "cli" if name == "cli" else LIBRARY


def python_files() -> Iterator[tuple[str, Path]]:
    for package in ("delift_pipeline", "assets", "resources"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def imports_of(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_layers_import_only_inwards() -> None:
    wrong = []
    for module, path in python_files():
        own = layer_of(module)
        assert own is not None
        for imported in imports_of(path, top_level_only=own == "cli"):
            other = layer_of(imported)
            if other is not None and ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{module} ({own}) imports {imported} ({other})")
    assert wrong == []


def test_library_never_imports_dagster() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in python_files()
        if layer_of(module) == LIBRARY
        for imported in imports_of(path)
        if imported.split(".")[0].startswith("dagster")
    ]
    assert wrong == []


def test_cli_imports_definitions_only_inside_functions() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in python_files()
        if layer_of(module) == "cli"
        for imported in imports_of(path, top_level_only=True)
        if imported.split(".")[0] in ("dagster", "assets", "resources")
        or layer_of(imported) in ("definitions", "wiring", "automation")
    ]
    assert wrong == []


def test_doors_never_import_heavy_packages_at_the_top() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in python_files()
        if layer_of(module) not in (LIBRARY, None)
        for imported in imports_of(path, top_level_only=True)
        if imported.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_definitions_load_within_ten_seconds_and_without_heavy_packages() -> None:
    program = (
        "import sys, time; started = time.perf_counter(); "
        "from delift_pipeline.definitions import defs; defs.get_repository_def(); "
        "print(time.perf_counter() - started); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, heavy = result.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 10
