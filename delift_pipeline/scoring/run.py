"""Score what is missing: the baseline, and the pairs of a plan."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Engine, Job, reduce_scores
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.plan import PairPlan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.shards import BASELINE, ShardDraft
from delift_pipeline.scoring.store import Leases, PairRequest, ScoreStore

SHARD_SECONDS = 5.0
"""A shard closes after the demonstration with which it holds this much work."""
LEASE_SPAN = 16
"""Demonstrations with neighbouring ids that are leased together."""
BASELINE_ROWS = 512
"""Targets of the baseline between two moments at which a shard can close."""
BASELINE_LEASE = "baseline"
POLL_SECONDS = 0.2


def score_baseline(
    model: LoadedModel,
    store: ScoreStore,
    records: EncodedRecords,
    progress: Progress | None = None,
    *,
    record_ids: Sequence[str] | None = None,
    engine: Engine | None = None,
    shard_seconds: float = SHARD_SECONDS,
) -> ScoreReport:
    """Score answers without a demonstration, those of `record_ids` or all; only what is missing.

    `engine` is used instead of the one that the model's options ask for.

    Raises:
        DeliftError: the store is of another fingerprint, or the model gives no numbers.
    """
    baseline_ids = records.ids if record_ids is None else record_ids
    run = _Run(model, store, records, PairPlan(()), baseline_ids, shard_seconds)
    return run.score("baseline", progress or SilentProgress(), engine)


def score_pairs(
    model: LoadedModel,
    store: ScoreStore,
    records: EncodedRecords,
    plan: PairPlan,
    progress: Progress | None = None,
    *,
    engine: Engine | None = None,
    shard_seconds: float = SHARD_SECONDS,
) -> ScoreReport:
    """Score the pairs of a plan that are not in the store; pairs of unscorable records left out.

    Another process may score the same plan at the same time: each takes leases and scores what the
    other does not. It returns when every pair of the plan is there. `engine` is used instead of the
    one that the model's options ask for.

    Raises:
        DeliftError: the plan names a record that was not given, the store is of another
            fingerprint, or the model gives no numbers.
    """
    run = _Run(model, store, records, plan, (), shard_seconds)
    return run.score("pairs", progress or SilentProgress(), engine)


class _Run:
    """One run of scoring; a shard closes with `shard_seconds` of work in it."""

    def __init__(
        self,
        model: LoadedModel,
        store: ScoreStore,
        records: EncodedRecords,
        plan: PairPlan,
        baseline_ids: Sequence[str],
        shard_seconds: float,
    ) -> None:
        self.started = time.monotonic()
        store.ensure_manifest(model.fingerprint)
        store.refresh()
        self.model, self.store, self.records = model, store, records
        self.request = PairRequest(plan, records, store, baseline_ids)
        self.shard_seconds = shard_seconds
        self.leases, self.draft = Leases(store.folder / "leases"), ShardDraft()
        self.shards_before, self.counts = len(store.index.shards), Counter[str]()

    def score(self, name: str, progress: Progress, engine: Engine | None) -> ScoreReport:
        """Score what is missing, if anything; what was scored before an error is kept as well."""
        self.settings: dict[str, Any] = {}
        if missing := self.request.missing():
            self.engine = engine or engine_for(self.model, progress)
            self.settings = self.engine.settings
            with self.leases, progress.track(name, sum(missing.values()), "pairs") as self.meter:
                try:
                    self._score_missing(list(missing))
                finally:
                    self._flush()
            self.store.refresh()
        return ScoreReport(
            pairs_scored=self.counts["pairs"],
            pairs_reused=self.request.pairs - self.counts["pairs"],
            pairs_left_out=self.request.left_out,
            shards_before=self.shards_before,
            shards_written=self.counts["shards"],
            seconds=time.monotonic() - self.started,
            halved=self.counts["halved"],
            engine=self.settings,
            cuts=self.records.cuts,
            unscorable=self.records.unscorable,
        )

    def _score_missing(self, remaining: list[int]) -> None:
        while remaining:
            for lease, group in groupby(remaining, key=_lease_name):
                if self.leases.claim(lease):
                    self._score_lease(group, lease)
            self._flush()
            self.leases.release()
            self.store.refresh()
            remaining = list(self.request.missing(remaining))
            if remaining:
                # The rest is under another writer's leases, which end when it is done or has died.
                time.sleep(POLL_SECONDS)

    def _score_lease(self, group: Iterable[int], lease: str) -> None:
        # Another writer may have scored these before the lease was free.
        self.store.refresh()
        in_flight = int(self.settings.get("in_flight", 1))
        # By id, so that a run that goes on after a kill puts the same demonstrations together.
        for _, numbers in groupby(group, key=lambda number: number // in_flight):
            demonstrations = [
                (number, ids)
                for number in numbers
                if len(ids := self.store.index.missing(number, self.request.targets(number)))
            ]
            parts = [demonstrations]
            if demonstrations and lease == BASELINE_LEASE:
                ids = demonstrations[0][1]
                cuts = range(BASELINE_ROWS, len(ids), BASELINE_ROWS)
                parts = [[(BASELINE, part)] for part in np.split(ids, cuts)]
            for part in filter(None, parts):
                self._score_demonstrations(part)
                if self.draft.seconds >= self.shard_seconds:
                    self._flush()
                    self.leases.release(keep=lease)

    def _score_demonstrations(self, demonstrations: Sequence[tuple[int, np.ndarray]]) -> None:
        """Score demonstrations on their targets' ascending ids; a shard never ends between them."""
        jobs = []
        for number, ids in demonstrations:
            prefix_rows = [] if number == BASELINE else [int(self.request.rows[number])]
            jobs.append(Job(self.records.prefix(*prefix_rows), self.request.rows[ids]))
        started = time.monotonic()
        results = self.engine.score(self.records, jobs)
        if not all(np.isfinite(scores.logprobs).all() for scores in results):
            raise DeliftError(
                "the model gives log-probabilities that are not finite; try dtype float32"
            )
        self.draft.seconds += time.monotonic() - started
        for (number, ids), scores in zip(demonstrations, results, strict=True):
            tokens = scores.lengths if number == BASELINE else None
            self.draft.add(number, ids, reduce_scores(scores), tokens)
            self.draft.halved += scores.halved
            self.meter.advance(len(ids))

    def _flush(self) -> None:
        """Close the shard in the making, if anything is in it."""
        if self.draft.demonstrations:
            self.store.write(self.draft, self.settings)
            self.counts.update(pairs=self.draft.pairs, shards=1, halved=self.draft.halved)
            self.draft = ShardDraft()


def _lease_name(number: int) -> str:
    return BASELINE_LEASE if number == BASELINE else str(number // LEASE_SPAN)
