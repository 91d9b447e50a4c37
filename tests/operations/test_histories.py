"""Random histories: walking down from records and up from adapters agrees, whatever happened."""

import shutil
import tempfile
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delift_pipeline.core.home import Home
from delift_pipeline.lineage.adapter import training_records
from delift_pipeline.lineage.artifacts import all_artifacts
from delift_pipeline.lineage.artifacts import find_artifact as stored_artifact
from delift_pipeline.lineage.record import record_lineage
from delift_pipeline.operations.gc import collect_garbage
from delift_pipeline.operations.query import run_query
from tests.operations.histories import (
    add_adapter,
    add_report,
    add_subset,
    add_version,
    records_of,
    unsynced,
)

NAMES = [f"record {i}" for i in range(8)]
ARMS = ["instruction_tuning.random", "instruction_tuning.delift", "continual.random"]


@dataclass
class History:
    """What happened, kept apart from the home: the oracle."""

    versions: dict[str, set[str]] = field(default_factory=dict)
    parents: dict[str, list[str]] = field(default_factory=dict)
    subsets: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    adapters: dict[tuple[str, str], set[str]] = field(default_factory=dict)


def play(home: Home, draw: st.DrawFn) -> History:
    history = History()
    for step in range(draw(st.integers(1, 14))):
        kinds = ["version"] + ["subset"] * 3 * bool(history.versions)
        kinds += ["adapter"] * 3 * bool(history.subsets) + ["delete"] * bool(history.subsets)
        match draw(st.sampled_from(kinds)):
            case "version":
                names = draw(st.lists(st.sampled_from(NAMES), min_size=2, unique=True))
                known = sorted(history.versions)
                parents = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
                add_version(home, f"v{step}", names, parents)
                history.versions[f"v{step}"] = set(names)
                history.parents[f"v{step}"] = parents
            case "subset":
                version = draw(st.sampled_from(sorted(history.versions)))
                arm = draw(st.sampled_from(ARMS))
                pool = sorted(history.versions[version])
                picks = draw(st.lists(st.sampled_from(pool), min_size=1, unique=True))
                add_subset(home, version, arm, picks)
                history.subsets[version, arm] = set(picks)
            case "adapter":
                cell = draw(st.sampled_from(sorted(history.subsets)))
                before = history.parents[cell[0]]
                others = sorted(other for other in history.adapters if other[0] in before)
                start = draw(st.sampled_from([None, *others]))
                add_adapter(home, *cell, start)
                inherited = history.adapters[start] if start else set()
                history.adapters[cell] = history.subsets[cell] | inherited
                if draw(st.booleans()):
                    add_report(home, *cell)
            case "delete":
                cell = draw(st.sampled_from(sorted(history.subsets)))
                what = draw(st.sampled_from(["subset", "adapter", "report"]))
                folder = getattr(home, what)(*cell)
                shutil.rmtree(folder, ignore_errors=True)
                if what == "subset":
                    del history.subsets[cell]
                if what == "adapter":
                    history.adapters.pop(cell, None)
    return history


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_walking_down_and_up_agrees_with_what_happened(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, unsynced():
        home = Home.at(folder)
        history = data.draw(st.composite(lambda draw: play(home, draw))())
        ids = dict(zip(NAMES, records_of(NAMES)["record_id"], strict=True))
        up = {}
        for cell in history.adapters:
            adapter = stored_artifact(home, ":".join(("adapter", *cell)))
            assert adapter is not None
            records = training_records(home, adapter)
            assert records is not None
            up[cell] = set(records["record_id"])
        assert up == {cell: {ids[n] for n in names} for cell, names in history.adapters.items()}
        stored = {name for names in history.versions.values() for name in names}
        down: dict[tuple[str, str], set[str]] = {cell: set() for cell in history.adapters}
        taken: dict[tuple[str, str], set[str]] = {cell: set() for cell in history.subsets}
        for name in stored:
            found = record_lineage(home, ids[name])
            for one in found.adapters:
                down[one["version"], one["arm"]].add(ids[name])
            for one in found.subsets:
                if one["taken"]:
                    taken[one["version"], one["arm"]].add(ids[name])
        assert down == up
        assert taken == {c: {ids[n] for n in names} for c, names in history.subsets.items()}
        rows = run_query(home, "SELECT DISTINCT version, arm, record_id FROM trained_on").rows
        assert set(rows) == {(*cell, name) for cell, names in up.items() for name in names}
        live = {one.folder for one in all_artifacts(home)}
        collect_garbage(home, apply=True, minimum_age=0)
        assert {one.folder for one in all_artifacts(home)} == live
