"""The asset graph: short doors into the library."""
