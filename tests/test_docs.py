"""Every command that the README or a page shows runs as it is written there."""

import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from delift_pipeline.cli import main
from tests.frozen import snapshot

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DIARY = ("history.md", "results.md")  # Measurements of the past; their commands may be gone.
NEEDS_MORE = ("--endpoint", "preset:", "--source", "--device", "--engine", "--load-in", "gsm8k")
"""A hub, a GPU, a server: such commands are only parsed."""
ELSEWHERE = {
    "demo": "tests/demo",
    "ui": "tests/end_to_end",
    "run": "tests/frozen",
    "bench": "tests/bench and tests/benchmarks",
    "compare": "tests/frozen",
    "judge": "tests/stages",
}
"""Commands that are parsed here, because they take long or serve -> the tests that run them."""
SELECT = "delift select data.jsonl --model M --budget 9"
EARLIER = {
    "--why reasons.jsonl --record": f"{SELECT} --why reasons.jsonl",
    "--parent mydata-v1": "delift ingest v1.jsonl --version mydata-v1 --model M",
}
"""Commands that need a file or a version -> the command that makes it."""
FILES = {
    snapshot.POOL: ("data", "pool", "v1", "delift_demo/demo_files/demo-v1"),
    snapshot.TARGET: ("examples", "target", "heldout", "v2"),
    snapshot.EXISTING: ("old",),
}
RECORD, OTHER = "pool-00026", "pool-00002"
PLACEHOLDERS = {
    "V/ARM": snapshot.TRAINED,
    "V/initial": snapshot.TRAINED,
    "V": "v1",
    "VERSION": "v1",
    "A": snapshot.ADDED,
    "ARM": snapshot.ADDED,
    "M": "demo",
    "./my-model": "demo",
    "ID": RECORD,
    "NAME": "random",
    "FILE": "data.jsonl",
    "SELECT ...": "SELECT count(*) AS n FROM records",
}


def commands(page: Path) -> set[str]:
    """The commands on a page: lines of code blocks, and code between backticks with arguments."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?:    )?(delift [a-z][^#\n]*)", text, re.MULTILINE)
    inline = re.findall(r"`(delift [a-z]+ [^`\n]+)`", text)
    return {" ".join(command.split()) for command in (*lines, *inline)}


SHOWN = sorted({command for page in PAGES if page.name not in DIARY for command in commands(page)})


def arguments(command: str) -> list[str]:
    """What the shell passes to the program, with real names for placeholders."""
    command = " ".join(re.sub(r"[\[\]]|\.\.\.(?!\")|\| --[a-z]+", " ", command).split())
    if command.startswith("delift select --"):
        command = command.replace("delift select", SELECT, 1)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)[1:]]
    seen: set[str] = set()
    # A demonstration and a second arm differ from what comes first.
    others = {RECORD: OTHER, snapshot.TRAINED: f"v1/{snapshot.ADDED}"}
    return [
        others[word] if word in seen and word in others else seen.add(word) or word
        for word in words
    ]


def parse(words: list[str]) -> None:
    """Fail where a command or an option does not exist."""
    command: Any = typer.main.get_command(main.app)
    context = None
    words = [word for word in words if word != "--debug"]  # Taken before any command is parsed.
    while hasattr(command, "commands"):
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
        with suppress(typer.BadParameter):  # A sentence often names one option alone.
            context = command.make_context(command.name, list(words), parent=context)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the frozen home and the files that the pages name."""
    snapshot.unpack(tmp_path)
    for source, names in FILES.items():
        for name in names:
            path = tmp_path / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
    return tmp_path


@pytest.mark.parametrize("command", SHOWN)
def test_command_of_the_docs_works(
    command: str, place: Path, delift: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = arguments(command)
    if words[0] in ELSEWHERE or any(part in command for part in NEEDS_MORE):
        parse(words)
        return
    monkeypatch.setenv("DELIFT_HOME", str(place / "home"))
    earlier = next((first for then, first in EARLIER.items() if then in command), None)
    for each in filter(None, (earlier, command)):
        answer = delift(*arguments(each))
        assert answer.status == 0, answer.err


def every_command(group: Any, name: str = "delift") -> dict[str, Any]:
    """Full name -> command, groups left out."""
    found: dict[str, Any] = {}
    for each, command in group.commands.items():
        within = hasattr(command, "commands")
        found |= every_command(command, f"{name} {each}") if within else {f"{name} {each}": command}
    return found


@pytest.mark.parametrize(
    ("name", "command"), every_command(typer.main.get_command(main.app)).items()
)
def test_help_has_an_example_that_exists(name: str, command: Any) -> None:
    example = command.help.split("Example: ")[1]
    assert example.startswith(f"{name} ") or example == name
    parse(arguments(example))


def test_the_pages_show_every_command() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    group: Any = typer.main.get_command(main.app)
    assert [name for name in group.commands if f"delift {name}" not in text] == []


def test_every_variable_is_on_the_page_of_variables() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    folders = ("delift_pipeline", "assets", "resources", "tools", "tests/browser")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    text = "".join(p.read_text(encoding="utf-8") for p in [*files, ROOT / "tests" / "conftest.py"])
    read = set(re.findall(r"\bDELIFT_[A-Z_]+", text)) - {"DELIFT_PROGRESS_BAR"}  # Ours alone.
    assert {"DELIFT_HOME", "DELIFT_REAL_MODEL"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []


def test_every_group_of_tests_is_on_the_pages_and_not_in_another() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    groups = re.findall(r"^(test-?[a-z]*):", makefile, re.MULTILINE)
    page = (ROOT / "docs" / "tests.md").read_text(encoding="utf-8")
    assert [group for group in groups if f"| `make {group}` |" not in page] == []
    in_ci = re.findall(r"^make (test\S*)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert len(in_ci) == len(set(in_ci))
    row = next(line for line in page.splitlines() if line.startswith("| `.ci/run` |"))
    assert {"test", "test-real"} <= set(in_ci)
    assert [group for group in in_ci if f"`{group}`" not in row] == []
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [group for group in in_ci if f"| `make {group}` |" not in table] == []
    own = re.findall(r'"(\w+): .*run by `make test-', (ROOT / "pyproject.toml").read_text("utf-8"))
    for group in ("test", "test-slow"):
        (chosen,) = re.findall(rf'^{group}: .*\n.* -m "(.*?)"', makefile, re.MULTILINE)
        assert {"real", "slow"} <= set(own)
        others = [name for name in own if group != f"test-{name}"]
        assert [name for name in others if f"not {name}" not in chosen] == []
