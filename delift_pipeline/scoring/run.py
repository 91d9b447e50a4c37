"""Score what is missing: the baseline, and the pairs of a plan."""

import time
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from delift_pipeline.progress import Progress, SilentProgress
from delift_pipeline.prompts.encoded import EncodedRecords
from delift_pipeline.scoring.engine import Engine
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.pairs import PairPlan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.session import Asked, Session, scoring_session
from delift_pipeline.scoring.shards import BASELINE
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.scoring.wanted import Wanted
from delift_pipeline.scoring.writer import SHARD_SECONDS

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
    """Score answers without a demonstration; only what is missing.

    Args:
        model: The scorer.
        store: Where scores are kept.
        records: The encoded records.
        progress: Where progress is shown.
        record_ids: The records to score; None for all scorable ones.
        engine: Used instead of the one the model's options ask for.
        shard_seconds: Work after which a shard closes.

    Raises:
        DeliftError: the store is of another fingerprint, or the model gives no numbers.
    """
    started = time.monotonic()
    asked = records.ids if record_ids is None else record_ids
    chosen = [record for record in asked if record in records.rows]
    store.describe(model.fingerprint)
    numbers = store.ids.add(chosen)
    rows = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
    rows[numbers] = [records.rows[record] for record in chosen]
    store.refresh()
    wanted, shards = np.unique(numbers), len(store.index.shards)
    missing = store.index.missing(BASELINE, wanted)
    session = None
    if len(missing):
        with scoring_session(
            model,
            store,
            records,
            progress or SilentProgress(),
            engine=engine,
            shard_seconds=shard_seconds,
            name="baseline",
            pairs=len(missing),
        ) as session:
            _score_alone(session, store, wanted, rows)
    return _report(session, records, len(wanted), len(asked) - len(chosen), shards, started)


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
    other does not. It returns when every pair of the plan is there.

    Args:
        model: The scorer.
        store: Where scores are kept.
        records: The encoded records, all that the plan names.
        plan: The wanted pairs.
        progress: Where progress is shown.
        engine: Used instead of the one the model's options ask for.
        shard_seconds: Work after which a shard closes.

    Raises:
        DeliftError: the plan names a record that was not given, the store is of another
            fingerprint, or the model gives no numbers.
    """
    started = time.monotonic()
    store.describe(model.fingerprint)
    wanted = Wanted(plan, records, store)
    store.refresh()
    shards = len(store.index.shards)
    missing = missing_counts(store, wanted, wanted.demonstrations)
    session = None
    if missing:
        with scoring_session(
            model,
            store,
            records,
            progress or SilentProgress(),
            engine=engine,
            shard_seconds=shard_seconds,
            name="pairs",
            pairs=sum(missing.values()),
        ) as session:
            _score_all(session, store, wanted, list(missing))
    return _report(session, records, wanted.pairs, wanted.left_out, shards, started)


def missing_counts(
    store: ScoreStore, wanted: Wanted, demonstrations: Sequence[int]
) -> dict[int, int]:
    """Demonstration id -> targets that are not scored yet; those with none are left out."""
    counts = {
        demonstration: len(store.index.missing(demonstration, wanted.targets(demonstration)))
        for demonstration in demonstrations
    }
    return {demonstration: count for demonstration, count in counts.items() if count}


def _score_alone(session: Session, store: ScoreStore, wanted: np.ndarray, rows: np.ndarray) -> None:
    while not session.writer.leases.claim(BASELINE_LEASE):
        time.sleep(POLL_SECONDS)
    # Another writer may have scored it while this one waited for the lease.
    store.refresh()
    missing = store.index.missing(BASELINE, wanted)
    for start in range(0, len(missing), BASELINE_ROWS):
        ids = missing[start : start + BASELINE_ROWS]
        session.score([Asked(BASELINE, session.records.prefix(), ids, rows[ids])])


def _score_all(session: Session, store: ScoreStore, wanted: Wanted, todo: list[int]) -> None:
    while True:
        for lease, group in groupby(todo, key=lambda demonstration: demonstration // LEASE_SPAN):
            if session.writer.leases.claim(str(lease)):
                _score_group(session, store, wanted, list(group), str(lease))
        session.writer.flush()
        session.writer.release()
        store.refresh()
        todo = list(missing_counts(store, wanted, todo))
        if not todo:
            return
        # The rest is under another writer's leases, which end when it is done or has died.
        time.sleep(POLL_SECONDS)


def _score_group(
    session: Session, store: ScoreStore, wanted: Wanted, group: list[int], lease: str
) -> None:
    # Another writer may have scored these before the lease was free.
    store.refresh()
    # By id, so that a run that goes on after a kill puts the same demonstrations together.
    for _, together in groupby(group, key=lambda demonstration: demonstration // session.in_flight):
        asked = [_asked(session, store, wanted, demonstration) for demonstration in together]
        asked = [one for one in asked if len(one.ids)]
        if asked and session.score(asked):
            session.writer.release(keep=lease)


def _asked(session: Session, store: ScoreStore, wanted: Wanted, demonstration: int) -> Asked:
    """A demonstration with those of its targets that are not scored yet."""
    ids = store.index.missing(demonstration, wanted.targets(demonstration))
    prefix = session.records.prefix(wanted.row(demonstration))
    return Asked(demonstration, prefix, ids, wanted.rows(ids))


def _report(
    session: Session | None,
    records: EncodedRecords,
    wanted: int,
    left_out: int,
    shards: int,
    started: float,
) -> ScoreReport:
    writer = session.writer if session else None
    scored = writer.pairs if writer else 0
    return ScoreReport(
        pairs_scored=scored,
        pairs_reused=wanted - scored,
        pairs_left_out=left_out,
        shards_found=shards,
        shards_written=writer.shards if writer else 0,
        seconds=time.monotonic() - started,
        halved=writer.halved if writer else 0,
        engine=session.engine.settings if session else {},
        cuts=records.cuts,
        unscorable=records.unscorable,
    )
