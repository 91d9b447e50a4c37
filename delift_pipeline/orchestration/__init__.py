"""Dagster's partitions, automation conditions, jobs, sensors and schedules."""
