"""Pairwise utilities and the kernels built from them."""
