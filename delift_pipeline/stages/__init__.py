"""The stages of the pipeline: each reads a home, does what is missing, writes, and returns that."""
