"""Measure models on the held-out set, and write reports and the leaderboard."""
