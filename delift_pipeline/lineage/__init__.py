"""Lineage: the parents of every artifact, MLflow tracking, model cards and the champion."""
