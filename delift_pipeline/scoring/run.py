"""Score what is missing: the baseline, and the pairs of a plan."""

import time
from collections.abc import Callable, Iterable, Sequence
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
from delift_pipeline.scoring.store import Leases, ScoreStore, Wanted

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
    asked = records.ids if record_ids is None else record_ids
    chosen = [record for record in asked if record in records.rows]
    run = _Run(model, store, records, progress, engine, shard_seconds)
    numbers = store.ids.add(chosen)
    rows = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
    rows[numbers] = [records.rows[record] for record in chosen]
    wanted = np.unique(numbers)

    def score_missing() -> None:
        while not run.leases.claim(BASELINE_LEASE):
            time.sleep(POLL_SECONDS)
        # Another writer may have scored it while this one waited for the lease.
        store.refresh()
        missing = store.index.missing(BASELINE, wanted)
        for start in range(0, len(missing), BASELINE_ROWS):
            ids = missing[start : start + BASELINE_ROWS]
            run.score([(BASELINE, ids, Job(records.prefix(), rows[ids]))])

    run.work("baseline", len(store.index.missing(BASELINE, wanted)), score_missing)
    return run.report(len(wanted), len(asked) - len(chosen))


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
    run = _Run(model, store, records, progress, engine, shard_seconds)
    wanted = Wanted(plan, records, store)
    missing = wanted.missing()

    def score_missing() -> None:
        todo = list(missing)
        while todo:
            for lease, group in groupby(todo, key=lambda number: number // LEASE_SPAN):
                if run.leases.claim(str(lease)):
                    _score_group(run, wanted, group, str(lease))
            run.flush()
            run.leases.release()
            store.refresh()
            todo = list(wanted.missing(todo))
            if todo:
                # The rest is under another writer's leases, which end when it is done or has died.
                time.sleep(POLL_SECONDS)

    run.work("pairs", sum(missing.values()), score_missing)
    return run.report(wanted.pairs, wanted.left_out)


def _score_group(run: "_Run", wanted: Wanted, group: Iterable[int], lease: str) -> None:
    # Another writer may have scored these before the lease was free.
    run.store.refresh()
    in_flight = int(run.settings.get("in_flight", 1))
    # By id, so that a run that goes on after a kill puts the same demonstrations together.
    for _, together in groupby(group, key=lambda number: number // in_flight):
        asked = [
            (number, ids, Job(run.records.prefix(int(wanted.rows[number])), wanted.rows[ids]))
            for number in together
            if len(ids := run.store.index.missing(number, wanted.targets(number)))
        ]
        if asked and run.score(asked):
            run.leases.release(keep=lease)


class _Run:
    """One run of scoring; a shard closes with `shard_seconds` of work in it."""

    def __init__(
        self,
        model: LoadedModel,
        store: ScoreStore,
        records: EncodedRecords,
        progress: Progress | None,
        engine: Engine | None,
        shard_seconds: float,
    ) -> None:
        self.started = time.monotonic()
        store.describe(model.fingerprint)
        store.refresh()
        self.model, self.store, self.records = model, store, records
        self.progress, self.shard_seconds = progress or SilentProgress(), shard_seconds
        self.engine, self.settings = engine, dict[str, Any]()
        self.leases, self.draft = Leases(store.folder / "leases"), ShardDraft()
        self.found, self.pairs, self.shards, self.halved = len(store.index.shards), 0, 0, 0

    def work(self, name: str, pairs: int, score_missing: Callable[[], None]) -> None:
        """Do the work, if there is any; what was scored before an error is kept as well."""
        if not pairs:
            return
        self.engine = self.engine or engine_for(self.model, self.progress)
        self.settings = self.engine.settings
        with self.leases, self.progress.track(name, pairs, "pairs") as meter:
            self.meter = meter
            try:
                score_missing()
            finally:
                self.flush()
        self.store.refresh()

    def score(self, asked: Sequence[tuple[int, np.ndarray, Job]]) -> bool:
        """Score demonstrations together: of each its id, its targets' ascending ids and its job.

        A shard never ends between them. Returns whether that closed one.

        Raises:
            DeliftError: the model gives no numbers.
        """
        assert self.engine is not None
        started = time.monotonic()
        found = self.engine.score(self.records, [job for _, _, job in asked])
        if not all(np.isfinite(scores.logprobs).all() for scores in found):
            raise DeliftError(
                "the model gives log-probabilities that are not finite; try dtype float32"
            )
        self.draft.seconds += time.monotonic() - started
        for (number, ids, _), scores in zip(asked, found, strict=True):
            tokens = scores.lengths if number == BASELINE else None
            self.draft.add(number, ids, reduce_scores(scores), tokens)
            self.draft.halved += scores.halved
            self.meter.advance(len(ids))
        if full := self.draft.seconds >= self.shard_seconds:
            self.flush()
        return full

    def flush(self) -> None:
        """Close the shard in the making, if anything is in it."""
        if self.draft.demonstrations:
            self.store.write(self.draft, self.settings)
            self.shards += 1
            self.pairs += self.draft.pairs
            self.halved += self.draft.halved
            self.draft = ShardDraft()

    def report(self, wanted: int, left_out: int) -> ScoreReport:
        """What was done, of so many wanted pairs, with those left out for unscorable records."""
        return ScoreReport(
            pairs_scored=self.pairs,
            pairs_reused=wanted - self.pairs,
            pairs_left_out=left_out,
            shards_found=self.found,
            shards_written=self.shards,
            seconds=time.monotonic() - self.started,
            halved=self.halved,
            engine=self.settings,
            cuts=self.records.cuts,
            unscorable=self.records.unscorable,
        )
