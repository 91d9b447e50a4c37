"""The tracking resource."""

import subprocess
import sys

from delift_pipeline.lineage.tracking import Tracker
from delift_pipeline.storage.home import Home
from resources.tracking import TrackingResource


def test_it_gives_a_tracker_that_opens_nothing_yet(home: Home) -> None:
    tracker = TrackingResource(uri="http://host:5000", experiment="mine").tracker(home)
    assert isinstance(tracker, Tracker)
    assert (tracker.uri, tracker.experiment) == ("http://host:5000", "mine")
    assert not home.root.exists()


def test_the_default_is_the_homes_own_store(home: Home) -> None:
    tracker = TrackingResource().tracker(home)
    assert isinstance(tracker, Tracker)
    assert (tracker.uri, tracker.experiment) == (None, "delift")


def test_switched_off_there_is_none(home: Home) -> None:
    assert TrackingResource(enabled=False).tracker(home) is None


def test_every_field_is_described_and_has_a_default() -> None:
    for field in ("uri", "experiment", "enabled"):
        info = TrackingResource.model_fields[field]
        assert info.description
        assert not info.is_required()


def test_mlflow_waits_until_it_is_used() -> None:
    code = (
        "import sys; from pathlib import Path; from delift_pipeline.storage.home import Home; "
        "from resources.tracking import TrackingResource; "
        "TrackingResource().tracker(Home(Path('/absent'))); sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
