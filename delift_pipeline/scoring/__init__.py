"""Teacher-forced log-probabilities of answers, alone and after a demonstration."""
