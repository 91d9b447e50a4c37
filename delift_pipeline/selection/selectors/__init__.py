"""The selectors, one module each."""
