"""The tracking resource."""

import subprocess
import sys

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.lineage.tracking import Tracker
from resources import TrackingResource


def test_it_gives_a_tracker_that_opens_nothing_yet(home: Home) -> None:
    tracker = TrackingResource(uri="http://host:5000", experiment="mine").tracker(home)
    assert isinstance(tracker, Tracker)
    assert (tracker.uri, tracker.experiment) == ("http://host:5000", "mine")
    assert not home.root.exists()


def test_the_default_is_the_homes_own_store(home: Home) -> None:
    tracker = TrackingResource().tracker(home)
    assert isinstance(tracker, Tracker)
    assert (tracker.uri, tracker.experiment) == (None, "delift")


def test_a_server_is_one_setting_of_the_environment(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIFT_TRACKING_URI", "https://track.example")
    monkeypatch.setenv("DELIFT_EXPERIMENT", "mine")
    tracker = TrackingResource().tracker(home)
    assert isinstance(tracker, Tracker)
    assert (tracker.uri, tracker.experiment) == ("https://track.example", "mine")
    own = TrackingResource(uri="http://other:5000", experiment="ours").tracker(home)
    assert isinstance(own, Tracker)
    assert (own.uri, own.experiment) == ("http://other:5000", "ours")


def test_mlflows_own_variable_sends_no_text_anywhere(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://track.example")
    tracker = TrackingResource().tracker(home)
    assert isinstance(tracker, Tracker)
    assert tracker.uri is None


@pytest.mark.parametrize("uri", ["./mlruns", "sqlite:///x.db", "host:5000", "file:///tmp"])
def test_what_is_no_server_is_refused(home: Home, uri: str) -> None:
    with pytest.raises(InputError, match="is not a tracking server"):
        TrackingResource(uri=uri).tracker(home)


def test_switched_off_there_is_none(home: Home) -> None:
    assert TrackingResource(enabled=False).tracker(home) is None


def test_every_field_is_described_and_has_a_default() -> None:
    for field in ("uri", "experiment", "enabled"):
        info = TrackingResource.model_fields[field]
        assert info.description
        assert not info.is_required()


def test_mlflow_waits_until_it_is_used() -> None:
    code = (
        "import sys; from pathlib import Path; from delift_pipeline.core.home import Home; "
        "from resources import TrackingResource; "
        "TrackingResource().tracker(Home(Path('/absent'))); sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
