"""How old the newest of an asset may be before it is shown as late."""

from datetime import timedelta

import dagster as dg

# The weekly schedule looks at everything once a week: a day over it warns, a month fails. Dagster
# judges an asset by its newest partition; versions are immutable and older ones do not go stale.
within_a_week = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=8), fail_window=timedelta(days=31)
)
