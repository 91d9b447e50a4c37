"""Write the JSON files of this folder anew; the README says when that is right."""

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.frozen import snapshot


def run(*arguments: object) -> dict[str, Any]:
    """Run a command in this process and read its JSON."""
    from delift_pipeline.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main.run([*map(str, arguments), "--json"])
    assert status == 0, (arguments, out.getvalue())
    return json.loads(out.getvalue())


def write(name: str, value: Any) -> None:
    """Write one of the files, one entry a line where it can be."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    (snapshot.FROZEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(name)


def main() -> None:
    """Record everything, picks last: they take minutes."""
    for name in snapshot.HOMES:
        os.environ.pop(name, None)
    write("graph", snapshot.graph())
    write("commands", snapshot.commands())
    with tempfile.TemporaryDirectory() as folder:
        home = snapshot.unpack(Path(folder))
        write("answers", snapshot.answers(run, home))
        write("catalogue", snapshot.views(home))
        before = snapshot.tracking(home)
        report = run("run", "--version", "v1", "--arm", snapshot.ADDED, "--home", home)
        again = run("run", "--version", "v2", "--home", home)
        compared = run(*snapshot.COMPARE, "--home", home)
        parts = {"first": report, "second": again, "compare": compared}
        write("run", {name: snapshot.shape_of(part) for name, part in parts.items()})
        write("tracking", {"before": before, "after": snapshot.tracking(home)})
        write("materialisations", snapshot.materialisations(home))
        write("files", snapshot.files(home))
    picks = {}
    for name, arguments in snapshot.cases().items():
        with tempfile.TemporaryDirectory() as folder:
            picks[name] = snapshot.picks(run, arguments, Path(folder))
        print(name, flush=True)
    write("picks", picks)


if __name__ == "__main__":
    main()
