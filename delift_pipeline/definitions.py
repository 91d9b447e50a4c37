"""The code location for Dagster: the graph of the home that `$DELIFT_HOME` names."""

from delift_pipeline.core.home import Home
from delift_pipeline.graph import build_definitions

defs = build_definitions(Home.at())
