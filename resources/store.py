"""The home directory as a resource."""

import dagster as dg
from pydantic import Field

from delift_pipeline.arms import Arms, load_arms
from delift_pipeline.storage.home import Home


class StoreResource(dg.ConfigurableResource):
    """Where data sets, scores, kernels, subsets, adapters and reports lie.

    Assets write for themselves through this store instead of an I/O manager: shards, memory-mapped
    kernels and adapter folders are no single Python value that one could hand over.
    """

    home: str = Field(
        default="",
        description="The home directory; empty takes $DELIFT_HOME, else ./delift_home.",
    )

    def open(self) -> Home:
        """The home."""
        return Home.at(self.home or None)

    def arms(self) -> Arms:
        """The home's arms: its own `arms.yaml`, else the package's."""
        return load_arms(self.open())
