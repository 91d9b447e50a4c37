"""Metrics on the held-out set, reports and the leaderboard."""
