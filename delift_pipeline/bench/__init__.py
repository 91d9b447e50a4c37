"""Benchmarks: what is fast, and what is worth it."""
