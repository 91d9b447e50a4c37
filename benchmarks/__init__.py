"""Benchmarks, run from the repository."""
