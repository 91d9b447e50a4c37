"""Benchmarks of speed, and of what selectors are worth."""
