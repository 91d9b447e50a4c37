"""The code location: the graph of the home that `$DELIFT_HOME` names."""

from delift_pipeline.graph import build_definitions
from delift_pipeline.storage.home import Home

defs = build_definitions(Home.at())
