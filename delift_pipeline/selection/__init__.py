"""Submodular objectives, greedy optimizers and the selectors made of them."""
