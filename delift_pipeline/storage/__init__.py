"""The home directory: paths, atomic writes, manifests."""
