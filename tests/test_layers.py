"""Who may import whom, and that loading the definitions stays cheap."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("delift_pipeline", "assets", "resources")
FLOORS = (
    *("core", "records", "prompts", "scoring", "kernel", "selection", "training", "evaluation"),
    *("lineage", "stages", "operations", "demo", "bench"),
    *("resources", "orchestration", "assets", "definitions", "cli"),
)
"""From the ground up: a module imports from its own floor and from lower ones, everywhere in it."""
LIBRARY = FLOORS[: FLOORS.index("resources")]
# Folders and modules of `delift_pipeline` that stand on the floor of another name.
FLOOR_OF = {"": "core", "defaults": "core", "graph": "definitions"}
HEAVY = ("torch", "transformers", "peft", "vllm", "mlflow", "duckdb", "sentence_transformers")


@cache
def modules_of(root: Path) -> dict[str, ast.Module]:
    """Every module of the packages below a folder, by name; a package goes by its own name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports_of(tree: ast.Module, top_level_only: bool = False) -> Iterator[str]:
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports name their module in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str:
    """The folder or module of `delift_pipeline` that holds a module, or the whole package."""
    first, *rest = module.split(".")
    return first if first != "delift_pipeline" else f"{first}.{rest[0] if rest else ''}"


def floor_of(module: str) -> str:
    name = _short(package_of(module))
    floor = FLOOR_OF.get(name, name)
    assert floor in FLOORS, f"{module} stands on no floor: add its folder to this test"
    return floor


def edges_of(modules: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> the modules of the tree that it imports anywhere in it."""
    edges = {}
    for module, tree in modules.items():
        named = set(imports_of(tree)) & modules.keys()
        # `from package import module` names both: only the module is meant.
        meant = {one for one in named if not any(other.startswith(f"{one}.") for other in named)}
        edges[module] = meant - {module}
    return edges


def violations_of(root: Path) -> list[str]:
    """Imports of higher floors, and cycles of modules and of packages."""
    edges = edges_of(modules_of(root))
    found = [
        f"{_short(module)} ({floor_of(module)}) imports {_short(imported)} ({floor_of(imported)})"
        for module, others in edges.items()
        for imported in sorted(others)
        if FLOORS.index(floor_of(imported)) > FLOORS.index(floor_of(module))
    ]
    packages: dict[str, set[str]] = {}
    for module, others in edges.items():
        own = package_of(module)
        packages.setdefault(own, set()).update({package_of(one) for one in others} - {own})
    return found + circles_of(edges) + circles_of(packages)


def circles_of(graph: Mapping[str, set[str]]) -> list[str]:
    """Groups of nodes that all lead to each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        reached[start], queue = set(), [start]
        while queue:
            queue += (fresh := graph[queue.pop()] - reached[start])
            reached[start] |= fresh
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph}
    return sorted(f"cycle of {', '.join(map(_short, sorted(one)))}" for one in circles if one)


def _short(module: str) -> str:
    return module.removeprefix("delift_pipeline.")


def test_modules_import_from_their_own_and_lower_floors_and_in_no_circle() -> None:
    assert violations_of(ROOT) == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"scoring/a.py": "import delift_pipeline.records.b", "records/b.py": ""}, []),
        (
            {"records/b.py": "from delift_pipeline.stages import a", "stages/a.py": ""},
            ["records.b (records) imports stages.a (stages)"],
        ),
        (
            {
                "records/b.py": "def late():\n    from delift_pipeline.cli.main import run",
                "cli/main.py": "",
            },
            ["records.b (records) imports cli.main (cli)"],
        ),
        (
            {
                "records/a.py": "from delift_pipeline.records import b",
                "records/b.py": "from delift_pipeline.records.a import name",
            },
            ["cycle of records.a, records.b"],
        ),
        (
            {
                "core/a.py": "import delift_pipeline.records.a",
                "core/b.py": "",
                "records/a.py": "import delift_pipeline.core.b",
            },
            ["core.a (core) imports records.a (records)", "cycle of core, records"],
        ),
    ],
)
def test_planted_violation_is_found(
    tmp_path: Path, files: dict[str, str], found: list[str]
) -> None:
    for name, text in files.items():
        path = tmp_path / "delift_pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert violations_of(tmp_path) == found


def test_module_on_no_floor_is_found(tmp_path: Path) -> None:
    (tmp_path / "delift_pipeline").mkdir()
    (tmp_path / "delift_pipeline" / "new.py").write_text("import delift_pipeline.new2")
    (tmp_path / "delift_pipeline" / "new2.py").write_text("")
    with pytest.raises(AssertionError, match="stands on no floor"):
        violations_of(tmp_path)


def test_library_never_imports_dagster() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, tree in modules_of(ROOT).items()
        if floor_of(module) in LIBRARY
        for imported in imports_of(tree)
        if imported.split(".")[0].startswith("dagster")
    ]
    assert wrong == []


def test_only_one_module_imports_private_parts_of_dagster() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, tree in modules_of(ROOT).items()
        if module != "delift_pipeline.orchestration.dagster_internals"
        for imported in imports_of(tree)
        if imported.startswith(("dagster._", "dagster_shared"))
    ]
    assert wrong == []


def test_cli_imports_definitions_only_inside_functions() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, tree in modules_of(ROOT).items()
        if floor_of(module) == "cli"
        for imported in imports_of(tree, top_level_only=True)
        if imported.split(".")[0] in ("dagster", "assets", "resources")
        or (imported in modules_of(ROOT) and floor_of(imported) in ("orchestration", "definitions"))
    ]
    assert wrong == []


def test_doors_never_import_heavy_packages_at_the_top() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, tree in modules_of(ROOT).items()
        if floor_of(module) not in LIBRARY
        for imported in imports_of(tree, top_level_only=True)
        if imported.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_definitions_load_within_ten_seconds_and_without_heavy_packages() -> None:
    program = (
        "import sys, time; started = time.process_time(); "
        "from delift_pipeline.definitions import defs; defs.get_repository_def(); "
        "print(time.process_time() - started); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, heavy = result.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 10
