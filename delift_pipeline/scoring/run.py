"""Score the baseline and the pairs of a plan that a store does not have yet."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from delift_pipeline.core.errors import DeliftError
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Engine, Job, TokenScores, reduce_scores, without_end
from delift_pipeline.scoring.engines import engine_for
from delift_pipeline.scoring.model import LoadedModel
from delift_pipeline.scoring.plan import PairPlan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.shards import (
    BASELINE,
    PROMPTED_ANSWER,
    UNPROMPTED_ANSWER,
    ShardDraft,
)
from delift_pipeline.scoring.store import Leases, PairRequest, ScoreStore

SHARD_SECONDS = 5.0
"""A shard is written as soon as it has this much work."""
LEASE_SPAN = 16
"""How many demonstrations with consecutive numbers one lease covers at least."""
BASELINE_ROWS = 512
"""How many targets without a demonstration are scored before a shard can be written."""
LEASES_ALONE = {BASELINE: "baseline", UNPROMPTED_ANSWER: "unprompted"}
"""The leases of the passes without a demonstration."""
CALL_PAIRS = 4096
"""How many pairs one call scores: enough to fill a GPU, few for an interrupted run to lose."""
POLL_SECONDS = 0.2


def score_baseline(
    model: LoadedModel,
    store: ScoreStore,
    records: EncodedRecords,
    progress: Progress | None = None,
    *,
    record_ids: Sequence[str] | None = None,
    support: bool = False,
    engine: Engine | None = None,
    shard_seconds: float = SHARD_SECONDS,
) -> ScoreReport:
    """Score the answers of `record_ids` (or all) without a demonstration, if they are missing.

    With `support`, each answer is also scored without its prompt (`scoring.support`). The report
    counts each pass over an answer as a pair. `engine` replaces the one that the model's options
    name.

    Raises:
        DeliftError: the store has another fingerprint, or the model gives no numbers.
    """
    baseline_ids = records.ids if record_ids is None else record_ids
    run = _Run(model, store, records, PairPlan(()), baseline_ids, shard_seconds, support)
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
    """Score the pairs of a plan that are not in the store, except those of unscorable records.

    Other processes may score the same plan at the same time: they share the work by leases. This
    returns when the store has every pair of the plan. `engine` replaces the one that the model's
    options name.

    Raises:
        DeliftError: the plan names a record that is not in `records`, the store has another
            fingerprint, or the model gives no numbers.
    """
    run = _Run(model, store, records, plan, (), shard_seconds)
    return run.score("pairs", progress or SilentProgress(), engine)


class _Run:
    """One run of scoring. It writes a shard after `shard_seconds` of work."""

    def __init__(
        self,
        model: LoadedModel,
        store: ScoreStore,
        records: EncodedRecords,
        plan: PairPlan,
        baseline_ids: Sequence[str],
        shard_seconds: float,
        support: bool = False,
    ) -> None:
        self.started = time.monotonic()
        store.ensure_manifest(model.fingerprint)
        store.refresh()
        self.model, self.store, self.records = model, store, records
        self.request = PairRequest(plan, records, store, baseline_ids, support=support)
        self.shard_seconds = shard_seconds
        self.leases, self.draft = Leases(store.folder / "leases"), ShardDraft()
        self.shards_before, self.counts = len(store.index.shards), Counter[str]()

    def score(self, name: str, progress: Progress, engine: Engine | None) -> ScoreReport:
        """Score what is missing; scores from before an error are written, too."""
        self.settings: dict[str, Any] = {}
        if missing := self.request.missing():
            self.engine = engine or engine_for(self.model, progress)
            self.settings = self.engine.settings
            targets = max(self.request.pairs // self.request.demonstrations, 1)
            in_flight = int(self.settings.get("in_flight", 1))
            self.in_flight = max(min(in_flight, CALL_PAIRS // targets), 1)
            unit = "passes" if name == "baseline" else "pairs"
            with self.leases, progress.track(name, sum(missing.values()), unit) as self.meter:
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
            for lease, group in groupby(remaining, key=self._lease_name):
                if self.leases.claim(lease):
                    self._score_lease(group, lease)
            self._flush()
            self.leases.release()
            self.store.refresh()
            remaining = list(self.request.missing(remaining))
            if remaining:
                # Another writer has leased the rest. Its leases end when it is done or has died.
                time.sleep(POLL_SECONDS)

    def _lease_name(self, number: int) -> str:
        span = max(LEASE_SPAN, self.in_flight)
        return LEASES_ALONE.get(number, str(number // span))

    def _score_lease(self, group: Iterable[int], lease: str) -> None:
        # Another writer may have scored this group before its lease was free.
        self.store.refresh()
        # Groups go by number, so a run after a kill makes the same batches as the killed one.
        for _, numbers in groupby(group, key=lambda number: number // self.in_flight):
            demonstrations = [
                (number, ids)
                for number in numbers
                if len(ids := self.request.missing_targets(number))
            ]
            parts = [demonstrations]
            if demonstrations and demonstrations[0][0] in LEASES_ALONE:
                ((number, ids),) = demonstrations
                cuts = range(BASELINE_ROWS, len(ids), BASELINE_ROWS)
                parts = [[(number, part)] for part in np.split(ids, cuts)]
            for part in filter(None, parts):
                self._score_demonstrations(part)
                if self.draft.seconds >= self.shard_seconds:
                    self._flush()
                    self.leases.release(keep=lease)

    def _score_demonstrations(self, demonstrations: Sequence[tuple[int, np.ndarray]]) -> None:
        """Score (number, target numbers) of each demonstration; all go into the same shard."""
        records, jobs = self.records, []
        if demonstrations[0][0] == UNPROMPTED_ANSWER:
            records = self.bare_records
        for number, ids in demonstrations:
            prefix_rows = [] if number in LEASES_ALONE else [int(self.request.rows[number])]
            jobs.append(Job(records.prefix(*prefix_rows), self.request.rows[ids]))
        started = time.monotonic()
        results = self.engine.score(records, jobs)
        if not all(np.isfinite(scores.logprobs).all() for scores in results):
            raise DeliftError(
                "the model returned log-probabilities that are not finite; try dtype float32"
            )
        self.draft.seconds += time.monotonic() - started
        for (number, ids), scores in zip(demonstrations, results, strict=True):
            if number in LEASES_ALONE:
                self._add_answers(number, ids, scores)
            else:
                self.draft.add(number, ids, reduce_scores(scores))
            self.draft.halved += scores.halved
            self.meter.advance(len(ids))

    def _add_answers(self, number: int, ids: np.ndarray, scores: TokenScores) -> None:
        answers = reduce_scores(without_end(scores))
        if number == BASELINE:
            self.draft.add(BASELINE, ids, reduce_scores(scores), scores.lengths)
            number = PROMPTED_ANSWER
        self.draft.add(number, ids, answers, scores.lengths)

    @cached_property
    def bare_records(self) -> EncodedRecords:
        """The records with an empty prompt."""
        return self.model.encoder.without_prompts(self.records)

    def _flush(self) -> None:
        """Write the draft as a shard, if it has any scores."""
        if self.draft.demonstrations:
            self.store.write(self.draft, self.settings)
            self.counts.update(pairs=self.draft.pairs, shards=1, halved=self.draft.halved)
            self.draft = ShardDraft()
