"""Print the names of everything that the code location defines, as JSON."""

import json
from typing import Any

import dagster as dg

from delift_pipeline.definitions import defs


def describe() -> dict[str, Any]:
    """Assets, checks, jobs, sensors, schedules, resources and arms by name."""
    repository, graph = defs.get_repository_def(), defs.resolve_asset_graph()
    assets = {}
    for key in sorted(graph.get_all_asset_keys(), key=str):
        node = graph.get(key)
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "parents": sorted(parent.to_user_string() for parent in node.parent_keys),
            "code_version": node.code_version,
            "kinds": sorted(node.kinds),
            "owners": sorted(node.owners),
            "partitions": _dimensions(node.partitions_def),
            "pools": sorted(node.pools or ()),
            "metadata": sorted(node.metadata),
            "automated": node.automation_condition is not None,
        }
    report = graph.get(dg.AssetKey("eval_report")).partitions_def
    assert isinstance(report, dg.MultiPartitionsDefinition)
    arms = next(one for one in report.partitions_defs if one.name == "arm").partitions_def
    return {
        "assets": assets,
        "checks": {
            f"{key.asset_key.to_user_string()}:{key.name}": {"blocking": graph.get(key).blocking}
            for key in sorted(graph.asset_check_keys, key=str)
        },
        "jobs": sorted(one.name for one in repository.get_all_jobs() if one.name[:2] != "__"),
        "sensors": sorted(one.name for one in repository.sensor_defs),
        "schedules": sorted(one.name for one in repository.schedule_defs),
        "resources": {
            name: sorted(type(one).model_fields)
            for name, one in sorted((defs.resources or {}).items())
        },
        "arms": list(arms.get_partition_keys()),
    }


def _dimensions(partitions: dg.PartitionsDefinition | None) -> list[str]:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return sorted(one.name for one in partitions.partitions_defs)
    return [] if partitions is None else [str(getattr(partitions, "name", ""))]


if __name__ == "__main__":
    print(json.dumps(describe()))
