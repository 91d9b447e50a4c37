"""The home directory, and where runs are tracked."""

import os
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.home import Home
from delift_pipeline.stages.arms import Arms, load_arms

if TYPE_CHECKING:
    from delift_pipeline.lineage.tracking import Tracker


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


URI_VARIABLE, EXPERIMENT_VARIABLE = "DELIFT_TRACKING_URI", "DELIFT_EXPERIMENT"
DEFAULT_EXPERIMENT = "delift"


class TrackingResource(dg.ConfigurableResource):
    """MLflow, in the home or on a server. Nothing is opened until something is logged.

    MLflow's own `MLFLOW_TRACKING_URI` is not read: what is logged holds record texts, and these go
    to a server only where one was named for them.
    """

    uri: str = Field(
        default="",
        description=f"A tracking server such as http://host:5000; empty takes ${URI_VARIABLE}, "
        "else the home's own store.",
    )
    experiment: str = Field(
        default="",
        description=f"The MLflow experiment, one a project; empty takes ${EXPERIMENT_VARIABLE}, "
        f"else `{DEFAULT_EXPERIMENT}`.",
    )
    enabled: bool = Field(default=True, description="Whether anything is tracked at all.")

    def tracker(self, home: Home) -> "Tracker | None":
        """The tracker for a home, or None where tracking is off.

        Raises:
            Refused: the address of the server is none that MLflow's clients speak.
        """
        from delift_pipeline.lineage.tracking import Tracker

        if not self.enabled:
            return None
        uri = self.uri or os.environ.get(URI_VARIABLE) or None
        if uri and not uri.startswith(("http://", "https://")):
            raise Refused(
                f"{uri!r} is no tracking server: give http://host:port or https://host, or "
                "nothing for the home's own store",
                field="tracking.uri",
            )
        name = self.experiment or os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
        return Tracker(home, uri, name, lazy=True)
