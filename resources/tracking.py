"""Where runs are tracked."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from delift_pipeline.storage.home import Home

if TYPE_CHECKING:
    from delift_pipeline.lineage.tracking import Tracker


class TrackingResource(dg.ConfigurableResource):
    """MLflow, in the home or on a server. Nothing is opened until something is logged."""

    uri: str = Field(
        default="",
        description="A tracking server such as http://host:5000; empty takes the home's own store.",
    )
    experiment: str = Field(
        default="delift", min_length=1, description="The MLflow experiment, one a project."
    )
    enabled: bool = Field(default=True, description="Whether anything is tracked at all.")

    def tracker(self, home: Home) -> "Tracker | None":
        """The tracker for a home, or None where tracking is off."""
        from delift_pipeline.lineage.tracking import Tracker

        return Tracker(home, self.uri or None, self.experiment, lazy=True) if self.enabled else None
