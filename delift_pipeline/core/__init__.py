"""Errors, progress, storage and formatting: what every other package stands on."""
