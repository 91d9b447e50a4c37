"""Prompt templates as data, and the exact tokens that are scored."""
