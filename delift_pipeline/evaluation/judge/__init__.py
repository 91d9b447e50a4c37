"""A language model as judge of generated answers."""
