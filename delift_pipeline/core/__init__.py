"""Errors, progress, storage and formatting, which all other packages use."""
