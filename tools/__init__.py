"""Programs for maintainers, run from the repository."""
