"""Benchmarks by name: where their files are, what their rows mean, how answers are measured."""
