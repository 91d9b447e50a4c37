"""One module per asset: read a home, do what is missing, write, say what to show."""
