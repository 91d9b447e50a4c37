"""What Dagster needs beside the assets: partitions, automation, jobs, sensors and schedules."""
