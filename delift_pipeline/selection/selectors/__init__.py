"""The selectors, one file each."""
