"""Partitions: dataset versions (dynamic), arms (static), and their product."""

from collections.abc import Mapping

import dagster as dg

from delift_pipeline.core.home import Home
from delift_pipeline.stages.arms import Arms

VERSION_DIMENSION, ARM_DIMENSION = "version", "arm"
PARTITION_TAG = "dagster/partition"

dataset_version = dg.DynamicPartitionsDefinition(name="dataset_version")


def version_and_arm(arms: Arms) -> dg.MultiPartitionsDefinition:
    """Return the partitions: every arm of every version. Retired arms keep theirs."""
    arm = dg.StaticPartitionsDefinition(arms.names)
    return dg.MultiPartitionsDefinition({VERSION_DIMENSION: dataset_version, ARM_DIMENSION: arm})


def partition_of(version: str, arm_name: str) -> dg.MultiPartitionKey:
    """Return the two-dimensional key of one version's arm."""
    return dg.MultiPartitionKey({VERSION_DIMENSION: version, ARM_DIMENSION: arm_name})


def version_and_arm_of(context: dg.AssetExecutionContext) -> tuple[str, str]:
    """Return the version and the arm of the partition that a run makes."""
    key = context.partition_key
    assert isinstance(key, dg.MultiPartitionKey)  # the asset's partitions_def guarantees it
    return key.keys_by_dimension[VERSION_DIMENSION], key.keys_by_dimension[ARM_DIMENSION]


def version_and_arm_in(tags: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the version and the arm in a run's tags, with None for what they do not name."""
    version = tags.get(f"{PARTITION_TAG}/{VERSION_DIMENSION}")
    if version:
        return version, tags.get(f"{PARTITION_TAG}/{ARM_DIMENSION}")
    return tags.get(PARTITION_TAG), None


def add_versions(instance: dg.DagsterInstance, home: Home) -> list[str]:
    """Add a partition for every stored version that the instance lacks; return these versions."""
    known = set(instance.get_dynamic_partitions(str(dataset_version.name)))
    missing = [version for version in home.versions() if version not in known]
    if missing:
        instance.add_dynamic_partitions(str(dataset_version.name), missing)
    return missing
