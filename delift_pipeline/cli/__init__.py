"""The `delift` program."""
