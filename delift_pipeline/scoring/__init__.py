"""Score answers: their log-probabilities without and after a demonstration."""
