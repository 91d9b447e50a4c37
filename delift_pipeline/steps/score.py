"""The steps behind `baseline_logprobs` and `in_context_logprobs`: score what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from delift_pipeline.errors import DeliftError
from delift_pipeline.lineage.existing import ancestors
from delift_pipeline.plots import histogram_png
from delift_pipeline.progress import Progress
from delift_pipeline.records.stored import load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.names import portable_name
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.pairs import PairBlock, PairPlan
from delift_pipeline.scoring.plan import read_plan
from delift_pipeline.scoring.report import ScoreReport
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.scorable import refuse_unscorable
from delift_pipeline.steps.outcome import PREVIEW_ROWS, Check, Outcome, kept_plot
from delift_pipeline.storage.hashing import digest_bytes, digest_json
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.manifest import Manifest, read_manifest, up_to_date

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder

CODE_VERSION = "1"
PLOT = "distances.png"
PLOTTED_COLUMNS = 200
"""Demonstrations whose pairs the picture of the scores is drawn from."""
Part = Literal["baseline", "in_context"]


@dataclass(frozen=True)
class Job:
    """One version's plan, and where its scores are kept.

    Attributes:
        home: The home.
        version: The dataset version.
        model: The scorer.
        fingerprint: Of every score.
        plan: The wanted pairs.
        plan_hash: The plan's content hash.
    """

    home: Home
    version: str
    model: ModelOptions
    fingerprint: str
    plan: PairPlan
    plan_hash: str

    @property
    def store(self) -> ScoreStore:
        """The scores of this fingerprint."""
        return ScoreStore(self.home.scores(self.fingerprint))

    def folder(self, part: Part) -> Path:
        """Where the manifest of this version's part lies, beside the shards that all share."""
        return part_folder(self.home, self.version, self.fingerprint, part)

    @property
    def parents(self) -> dict[str, str]:
        """What the scores are made of."""
        return {f"plan:{self.version}": self.plan_hash, "model": self.fingerprint}


def part_folder(home: Home, version: str, fingerprint: str, part: Part) -> Path:
    """`scores/<fingerprint>/versions/<version>/<part>`."""
    return home.scores(fingerprint) / "versions" / version / part


def scored_manifest(home: Home, version: str, fingerprint: str) -> Manifest:
    """The manifest of a version's in-context scores.

    Raises:
        DeliftError: they are not scored yet.
    """
    manifest = read_manifest(part_folder(home, version, fingerprint, "in_context"))
    if manifest is None:
        raise DeliftError(
            f"{version} is not scored with this model: materialise in_context_logprobs"
        )
    return manifest


def score_alone(
    home: Home, version: str, model: ModelOptions, progress: Progress, run_id: str | None = None
) -> Outcome:
    """Score each record of the plan without a demonstration, where that is missing."""
    return _score(_job(home, version, model), "baseline", progress, run_id)


def score_in_context(
    home: Home, version: str, model: ModelOptions, progress: Progress, run_id: str | None = None
) -> Outcome:
    """Score each planned pair that is missing; a kill loses at most the shard in flight."""
    return _score(_job(home, version, model), "in_context", progress, run_id)


def _job(home: Home, version: str, model: ModelOptions) -> Job:
    manifest = read_manifest(home.plan(version))
    if manifest is None:
        raise DeliftError(f"{version} has no pair plan yet: materialise pair_plan first")
    fingerprint = fingerprint_of(model).digest
    plan = read_plan(home.plan(version))
    return Job(home, version, model, fingerprint, plan, manifest.content_hash)


def _score(job: Job, part: Part, progress: Progress, run_id: str | None) -> Outcome:
    stored = up_to_date(job.folder(part), {}, job.parents, CODE_VERSION)
    if stored and not _missing(job, part, stored.details["unscorable"]):
        shards = len(job.store.shards)
        progress.say(f"all {stored.counts['wanted']:,} scores found in {shards:,} shards")
        return _outcome(job, part, stored, None)
    report = _run(job, part, progress)
    manifest = Manifest(
        kind="scores",
        content_hash=_content_hash(job, part, report.unscorable),
        parents=job.parents,
        fingerprint=job.fingerprint,
        counts={
            "wanted": _wanted(job, part),
            "pairs": report.pairs_scored + report.pairs_reused,
            "left_out": report.pairs_left_out,
            "unscorable": len(report.unscorable),
        },
        details={
            "unscorable": report.unscorable,
            "cuts": report.cuts,
            "engine": report.engine,
        },
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    job.folder(part).mkdir(parents=True, exist_ok=True)
    (job.folder(part) / PLOT).unlink(missing_ok=True)
    manifest.write(job.folder(part))
    return _outcome(job, part, manifest, report)


def _run(job: Job, part: Part, progress: Progress) -> ScoreReport:
    from delift_pipeline.scoring.model import load_encoder, load_scorer
    from delift_pipeline.scoring.run import score_baseline, score_pairs
    from delift_pipeline.scoring.workers import score_together

    frame, store = plan_records(job.home, job.version, job.plan), job.store
    pool = load_version(job.home, job.version).pool
    if part == "in_context" and job.model.workers > 1:
        encoder = load_encoder(job.model)
        encoded = _noted(encoder, progress).encode(frame)
        refuse_unscorable(pool, encoded.unscorable, "records of the pool")
        return score_together(job.model, store, frame, encoded, job.plan, progress)
    model = load_scorer(job.model)
    encoded = _noted(model.encoder, progress).encode(frame)
    refuse_unscorable(pool, encoded.unscorable, "records of the pool")
    if part == "baseline":
        return score_baseline(model, store, encoded, progress)
    return score_pairs(model, store, encoded, job.plan, progress)


def _noted(encoder: "Encoder", progress: Progress) -> "Encoder":
    """The encoder, once what the user should know of its wording is said."""
    for note in encoder.notes:
        progress.say(note)
    return encoder


def plan_records(home: Home, version: str, plan: PairPlan) -> pl.DataFrame:
    """The records a plan names (`RECORD_SCHEMA`), from this version and its ancestors."""
    dataset = load_version(home, version)
    frames = [dataset.pool, *([] if dataset.target is None else [dataset.target])]
    frames += [load_version(home, name).pool for name in ancestors(home, dataset)]
    named = pl.DataFrame({"record_id": list(plan.records())})
    known = pl.concat(frames).unique("record_id", keep="first")
    return named.join(known, on="record_id", how="inner", maintain_order="left")


def _wanted(job: Job, part: Part) -> int:
    return len(list(job.plan.records())) if part == "baseline" else job.plan.pairs


def _missing(job: Job, part: Part, unscorable: dict[str, str]) -> bool:
    if part == "baseline":
        records = tuple(r for r in job.plan.records() if r not in unscorable)
        return bool((job.store.baseline(records).tokens == 0).any())
    return any(scorable_pairs(block, unscorable) for block in job.store.missing(job.plan).blocks)


def scorable_pairs(block: PairBlock, unscorable: Mapping[str, str]) -> int:
    """Pairs of a block in which both records can be scored."""
    good = np.array([record not in unscorable for record in block.targets], dtype=bool)
    return sum(
        int(good[block.targets_of(place)].sum())
        for place, record in enumerate(block.demonstrations)
        if record not in unscorable
    )


def _content_hash(job: Job, part: Part, unscorable: dict[str, str]) -> str:
    store = job.store
    if part == "in_context":
        return digest_json({block.name: store.digest(block) for block in job.plan.blocks})
    records = tuple(r for r in job.plan.records() if r not in unscorable)
    found = store.baseline(records)
    return digest_json([list(records), digest_bytes(*(array.tobytes() for array in found))])


def _outcome(job: Job, part: Part, manifest: Manifest, report: ScoreReport | None) -> Outcome:
    unscorable = manifest.details["unscorable"]
    facts: dict[str, float | int | str] = {
        **{name: manifest.counts[name] for name in ("wanted", "left_out", "unscorable")},
        "pairs_scored": report.pairs_scored if report else 0,
        "pairs_reused": manifest.counts["pairs"],
        "shards": len(job.store.shards),
        "model": portable_name(job.model.model),
        "revision": job.model.revision or "",
        "template": job.model.template,
        "dtype": job.model.dtype,
    }
    if report:
        facts |= {
            "pairs_reused": report.pairs_reused,
            "pairs_per_second": report.pairs_per_second,
            "engine": str(report.engine.get("engine", "")),
            "halved_batches": report.halved,
        }
    cuts = manifest.details["cuts"]
    tables = {
        "cuts": pl.DataFrame(list(cuts.items()), schema=["kind", "records"], orient="row"),
        "unscorable records": pl.DataFrame(
            list(unscorable.items())[:PREVIEW_ROWS], schema=["record_id", "why"], orient="row"
        ),
    }
    folder = job.folder(part)
    return Outcome(
        manifest=manifest,
        path=folder.relative_to(job.home.root).as_posix(),
        reused=report is None or report.pairs_scored == 0,
        facts=facts,
        plots={"distances": kept_plot(folder / PLOT, lambda: _distances_png(job, part))},
        tables=tables,
        checks=_checks(job, part, unscorable),
    )


def _distances_png(job: Job, part: Part) -> bytes:
    """The distances d of the answers, alone or after the first demonstrations."""
    store, label = job.store, "d, from 0 (certain of every token) to 1"
    if part == "baseline":
        alone = store.baseline(tuple(job.plan.records()))
        return histogram_png(_distances(alone.squared_distance, alone.tokens), "answers", label)
    found = [np.empty(0, np.float32)]
    for block in job.plan.blocks:
        tokens = store.baseline(block.targets).tokens
        shown = store.columns(block.demonstrations[:PLOTTED_COLUMNS], block.targets)
        found += [_distances(column.squared_distance, tokens) for column in shown]
    return histogram_png(np.concatenate(found), "answers after a demonstration", label)


def _distances(squared: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The distance of each answer that is scored."""
    there = (tokens > 0) & ~np.isnan(squared)
    return np.sqrt(squared[there] / tokens[there])


def _checks(job: Job, part: Part, unscorable: dict[str, str]) -> dict[str, Check]:
    missing = _missing(job, part, unscorable)
    finite = _finite(job, part, unscorable)
    return {
        "complete": Check(
            not missing,
            "some scores of the plan are missing" if missing else "every planned score is there",
        ),
        "finite": Check(finite, "log-probabilities are finite and at most 0"),
    }


def _finite(job: Job, part: Part, unscorable: dict[str, str]) -> bool:
    """Whether all scores are finite with log-probabilities of at most 0, read block by block."""
    store = job.store
    if part == "baseline":
        records = tuple(r for r in job.plan.records() if r not in unscorable)
        found = store.baseline(records)
        return _sound(found.squared_distance, found.sum_logprob)
    for block in job.plan.blocks:
        targets = tuple(r for r in block.targets if r not in unscorable)
        for record in block.demonstrations:
            if record in unscorable:
                continue
            column = store.column(record, targets)
            # A pair outside the plan is absent, which the check of completeness sees.
            there = ~np.isnan(column.sum_logprob)
            if not _sound(column.squared_distance[there], column.sum_logprob[there]):
                return False
    return True


def _sound(squared: np.ndarray, logprob: np.ndarray) -> bool:
    both = np.isfinite(squared).all() and np.isfinite(logprob).all()
    return bool(both and (logprob <= 0).all() and (squared >= 0).all())
