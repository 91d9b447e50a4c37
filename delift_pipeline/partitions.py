"""Partitions: dataset versions (dynamic), arms (static), and their product."""

import dagster as dg

from delift_pipeline.arms import load_arms
from delift_pipeline.storage.home import Home

VERSION_DIMENSION = "version"
ARM_DIMENSION = "arm"

dataset_version = dg.DynamicPartitionsDefinition(name="dataset_version")
arm = dg.StaticPartitionsDefinition(load_arms().names)
version_and_arm = dg.MultiPartitionsDefinition(
    {VERSION_DIMENSION: dataset_version, ARM_DIMENSION: arm}
)


def partition_of(version: str, arm_name: str) -> dg.MultiPartitionKey:
    """The two-dimensional key of one version's arm."""
    return dg.MultiPartitionKey({VERSION_DIMENSION: version, ARM_DIMENSION: arm_name})


def version_and_arm_of(context: dg.AssetExecutionContext) -> tuple[str, str]:
    """The version and the arm that a run was launched for."""
    key = context.partition_key
    assert isinstance(key, dg.MultiPartitionKey)  # the asset's partitions_def guarantees it
    return key.keys_by_dimension[VERSION_DIMENSION], key.keys_by_dimension[ARM_DIMENSION]


def add_versions(instance: dg.DagsterInstance, home: Home) -> list[str]:
    """Make a partition of every stored version the instance does not know yet; return those."""
    known = set(instance.get_dynamic_partitions(str(dataset_version.name)))
    missing = [version for version in home.versions() if version not in known]
    if missing:
        instance.add_dynamic_partitions(str(dataset_version.name), missing)
    return missing
