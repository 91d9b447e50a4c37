"""The factory of the demo's model: its corpus, its training, and the test it has to pass."""
