"""What users and stored files can see, read through the program and its published formats only."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

FROZEN = Path(__file__).parent
POOL, TARGET, EXISTING = (FROZEN / f"{name}.jsonl" for name in ("pool", "target", "existing"))
TRAINED = "v1/instruction_tuning.random"
ADDED = "instruction_tuning.delift_trusted"
HOMES = ("DELIFT_HOME", "DAGSTER_HOME", "DELIFT_MODEL")
MODEL = ("--model", "demo", "--template", "world")
SHARD = re.compile(r"(shards/\d{8})-[0-9a-f]{8}")
HASH = re.compile(r"^[0-9a-f]{16,}$|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
FLAG = re.compile(r"^ +(--[a-z][a-z-]*)( / (--[a-z-]+))?", re.MULTILINE)
Run = Callable[..., dict[str, Any]]
"""Runs a command with `--json` and returns its document."""

# Commands whose answers have a shape worth keeping; {home} is the frozen home.
ANSWERS: dict[str, tuple[str, ...]] = {
    "verify": ("verify",),
    "gc": ("gc",),
    "catalog": ("catalog",),
    "doctor": ("doctor", "--no-self-test"),
    "query": ("query", "SELECT version, arm, count(*) AS n FROM subsets GROUP BY ALL ORDER BY ALL"),
    "explain": ("explain", "--version", "v1", "--arm", ADDED, "--record", "pool-00026"),
    "lineage adapter": ("lineage", "--adapter", TRAINED),
    "lineage record": ("lineage", "--record", "pool-00026"),
    "lineage version": ("lineage", "--version", "v2"),
    "plan version": ("plan", "--version", "v1", "--no-measure"),
    "plan file": ("plan", str(POOL), *MODEL, "--no-measure"),
    "prompt": (
        "prompt", str(POOL), *MODEL, "--target", "pool-00026", "--demonstration", "pool-00002",
    ),
    "judge": ("judge", TRAINED, "v1/initial", "--judge", *MODEL[1:], "--estimate"),
    "recipe": ("recipe",),
    "forget": ("forget", "pool-00026", "--dry-run"),
}  # fmt: skip
COMPARE = ("compare", TRAINED, f"v1/{ADDED}")
WITHOUT_HOME = {"prompt", "recipe"}

BUDGET = "12"
SHORT_WARM_UP = ("rank=8", "dims=512", "epochs=1")
SELECTORS = (
    "delift_trusted delift delift_se random full initial length selectit less deft_ucs rds_plus "
    "ifd nuggets"
).split()
OTHERS = {
    "delift kl": ("delift", "utility=kl"),
    "delift min_max": ("delift", "scaling=min_max"),
    "delift diagonal": ("delift", "diagonal=keep"),
    "delift near": ("delift", "pairs=neighbours"),
    "delift naive": ("delift", "optimizer=naive"),
    "delift stochastic": ("delift", "optimizer=stochastic"),
    "delift lazier": ("delift", "optimizer=lazier"),
    "delift blocked": ("delift", "optimizer=blocked"),
    "delift submodlib": ("delift", "optimizer=submodlib"),
    "delift_trusted minilm": ("delift_trusted", "embedder=minilm"),
    "delift_trusted model": ("delift_trusted", "embedder=model"),
}


def cases() -> dict[str, tuple[str, ...]]:
    """Name of a selection -> the arguments of `delift select` that make it."""

    def options(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(part for value in values for part in ("--option", value))

    found = {
        name: ("--selector", name, *options(SHORT_WARM_UP if name == "less" else ()))
        for name in SELECTORS
    }
    for name, (selector, *values) in OTHERS.items():
        found[name] = ("--selector", selector, *options(values))
    for selector in ("delift", "delift_trusted", "random", "rds_plus"):
        found[f"{selector} for a target"] = ("--selector", selector, "--target", str(TARGET))
        found[f"{selector} after existing"] = ("--selector", selector, "--existing", str(EXISTING))
    return found


def picks(run: Run, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a selection chooses of the pool: record ids in order, gains, and what it reports."""
    why = folder / "why.jsonl"
    report = run(
        "select", POOL, *MODEL, "--budget", BUDGET, *arguments, "--why", why,
        "--out", folder / "chosen.jsonl", "--home", folder / "home",
    )  # fmt: skip
    rows = [json.loads(line) for line in why.read_text(encoding="utf-8").splitlines()]
    chosen = sorted(
        (row for row in rows if row.get("rank") is not None), key=lambda row: row["rank"]
    )
    return {
        "ids": [row["record_id"] for row in chosen],
        "gains": [row["gain"] for row in chosen],
        "written": [
            json.loads(line)["id"]
            for line in (folder / "chosen.jsonl").read_text(encoding="utf-8").splitlines()
        ],
        "objective": report["objective"],
        "stage": report["stage"],
        "fingerprint": report["fingerprint"],
        "report": shape_of(report),
        "reasons": shape_of(rows),
    }


def unpack(folder: Path) -> Path:
    """The frozen home, unpacked into a folder."""
    with tarfile.open(FROZEN / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "home"


def shape_of(value: Any) -> Any:
    """Keys and kinds of a JSON value: hashes and the lengths of lists do not count."""
    if isinstance(value, dict):
        return {("HASH" if HASH.match(key) else key): shape_of(part) for key, part in value.items()}
    if isinstance(value, list):
        merged: Any = []
        for part in value:
            shape = shape_of(part)
            if shape not in merged:
                merged.append(shape)
        return sorted(merged, key=lambda shape: json.dumps(shape, sort_keys=True))
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, int | float) else "null" if value is None else "text"


def answers(run: Run, home: Path) -> dict[str, Any]:
    """The shapes of the commands' answers on the frozen home."""
    return {
        name: shape_of(run(*arguments, *(() if name in WITHOUT_HOME else ("--home", home))))
        for name, arguments in ANSWERS.items()
    }


def commands() -> dict[str, list[str]]:
    """Every command of the program -> the flags that its help lists."""

    def flags_of(*path: str) -> list[str]:
        text = _help(*path)
        return sorted({flag for match in FLAG.finditer(text) for flag in match.group(1, 3) if flag})

    def walk(*path: str) -> Iterator[tuple[str, list[str]]]:
        yield " ".join(path), flags_of(*path)
        text = _help(*path)
        if "\nCommands:" in text:
            listed = text.split("\nCommands:", 1)[1]
            for name in re.findall(r"^  ([a-z]+) ", listed, re.MULTILINE):
                yield from walk(*path, name)

    return dict(walk())


def _help(*path: str) -> str:
    from typer.testing import CliRunner

    from delift_pipeline.cli.main import app

    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


def graph() -> dict[str, Any]:
    """What the code location defines, loaded in a process of its own with the shipped arms."""
    environment = {key: value for key, value in os.environ.items() if key not in HOMES}
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-m", "tests.frozen.graph"],
            env=environment | {"DELIFT_HOME": empty},
            cwd=FROZEN.parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout)


def files(home: Path) -> dict[str, Any]:
    """The home's files: names, keys of JSON and safetensors, columns and types of tables."""
    found: dict[str, Any] = {}
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        if path.is_dir() or parts[0] in ("dagster", "mlflow") or "leases" in parts:
            continue
        if path.suffix in (".lock", ".duckdb"):  # The catalogue comes with the first query.
            continue
        name = "/".join("HASH" if HASH.match(part) else part for part in parts)
        name = SHARD.sub(r"\1-HASH", name)
        found[name] = "file"
        if path.suffix == ".json":
            found[name] = shape_of(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".parquet":
            schema = pl.read_parquet_schema(path)
            found[name] = {column: str(kind) for column, kind in schema.items()}
    return found


def views(home: Path) -> dict[str, Any]:
    """The catalogue's tables and views: columns and types."""
    import duckdb

    with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as catalogue:
        rows = catalogue.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            "ORDER BY table_name, ordinal_position"
        ).fetchall()
    tables: dict[str, Any] = {}
    for table, column, kind in rows:
        tables.setdefault(table, {})[column] = kind
    return tables


def tracking(home: Path) -> dict[str, Any]:
    """What MLflow holds: names of experiments, runs, metrics, parameters, tags and models."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    runs = {
        str(run.info.run_name): {
            "experiment": experiments[run.info.experiment_id],
            "status": run.info.status,
            "metrics": sorted(run.data.metrics),
            "params": sorted(run.data.params),
            "tags": sorted(run.data.tags),
            "artifacts": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        }
        for run in client.search_runs(list(experiments))
    }
    models = {}
    for model in client.search_registered_models():
        versions = client.search_model_versions(f"name='{model.name}'")
        models[model.name] = {
            "aliases": {
                alias: _arm(client.get_model_version_by_alias(model.name, alias).tags)
                for alias in sorted(client.get_registered_model(model.name).aliases)
            },
            "tags": sorted(model.tags),
            "versions": {
                _arm(version.tags): sorted(version.tags)
                for version in sorted(versions, key=lambda one: int(one.version))
            },
        }
    return {"experiments": sorted(experiments.values()), "runs": runs, "models": models}


def _arm(tags: dict[str, str]) -> str:
    return next(value for key, value in sorted(tags.items()) if key.endswith("arm"))


def materialisations(home: Path) -> dict[str, Any]:
    """Asset partition -> metadata and checks of its latest run, as the Dagster UI shows them."""
    import dagster as dg

    shown: dict[str, Any] = {}
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        for record in instance.get_run_records(limit=100, ascending=True):
            events = instance.all_logs(record.dagster_run.run_id)
            for event in (one.dagster_event for one in events if one.dagster_event):
                partition = record.dagster_run.tags.get("dagster/partition", "")
                if event.event_type_value == "ASSET_MATERIALIZATION":
                    made = event.step_materialization_data.materialization
                    key = f"{made.asset_key.to_user_string()} {partition}".strip()
                    kinds = {title: type(value).__name__ for title, value in made.metadata.items()}
                    shown.setdefault(key, {})["metadata"] = kinds
                elif event.event_type_value == "ASSET_CHECK_EVALUATION":
                    check = event.asset_check_evaluation_data
                    key = f"{check.asset_key.to_user_string()} {partition}".strip()
                    checks = shown.setdefault(key, {}).setdefault("checks", {})
                    checks[check.check_name] = {
                        "passed": check.passed,
                        "severity": check.severity.value,
                        "metadata": sorted(check.metadata),
                    }
    return dict(sorted(shown.items()))


def read(name: str) -> Any:
    """One of the JSON files of this folder."""
    return json.loads((FROZEN / f"{name}.json").read_text(encoding="utf-8"))
