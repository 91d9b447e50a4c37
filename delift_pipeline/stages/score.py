"""The stage behind `baseline_logprobs` and `in_context_logprobs`: compute missing scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from delift_pipeline.core.hashing import digest_bytes, digest_json
from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import Manifest, read_manifest, up_to_date
from delift_pipeline.core.output import refuse_unwritable_folder
from delift_pipeline.core.progress import LARGE, Progress, track_large
from delift_pipeline.records.stored import load_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan, read_plan
from delift_pipeline.scoring.report import ScoreReport, pairs_per_second, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.run import refuse_unscorable
from delift_pipeline.stages.announce import announce_scoring
from delift_pipeline.stages.plan import plan_manifest
from delift_pipeline.stages.result import Result, known_records

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import EncodedRecords, Encoder

CODE_VERSION = "1"
Part = Literal["baseline", "in_context"]
DISTANCES_PLOT = "distances.png"
PARTS: tuple[Part, ...] = ("baseline", "in_context")
PASSES = 2
"""How many passes the part `baseline` takes for each answer: after its prompt, and without it."""
REQUESTS: dict[Part, dict[str, Any]] = {"baseline": {"passes": PASSES}, "in_context": {}}
"""What each part computes. A version without passes for support gets them when it is next made."""


@dataclass(frozen=True)
class ScoreResult(Result):
    """The scores of a version: baseline or in-context.

    Attributes:
        plan: The version's plan. The baseline's has the whole pool in it, even without pairs.
        store: The store of these scores. It also holds those of other versions.
        report: What was scored now. None if the manifest said that every score is stored.
    """

    part: Part
    model: ModelOptions
    plan: PairPlan
    store: ScoreStore
    report: ScoreReport | None

    @property
    def unscorable(self) -> dict[str, str]:
        """Why records cannot be scored, by record_id."""
        return self.manifest.details["unscorable"]


def score_version(
    home: Home,
    version: str,
    part: Part,
    model: ModelOptions,
    progress: Progress,
    run_id: str | None = None,
    *,
    with_baseline: bool = False,
    encoded: "EncodedRecords | None" = None,
) -> ScoreResult:
    """Compute the missing scores of a version's plan. A kill loses at most one unfinished shard.

    `part` is `baseline` for each answer alone, with and without its prompt, or `in_context` for
    each planned pair. The baseline has all records of the plan and of the pool.
    `with_baseline` scores both with one load of the model. `encoded` holds the records of the plan
    if they are encoded already.

    Raises:
        InputError: no record of the pool can be scored, or the model cannot be used.
        DeliftError: the version has no plan, or the model's output is not finite.
    """
    fingerprint = fingerprint_of(model).digest
    folder = home.version_scores(version, fingerprint, part)
    parents = {
        f"plan:{version}": plan_manifest(home, version).content_hash,
        "model": fingerprint,
    }
    plan, store = read_plan(home.plan(version)), ScoreStore(home.scores(fingerprint))
    dataset = load_version(home, version)
    if part == "baseline":
        pool = PairBlock("self", tuple(dataset.pool["record_id"]), ())
        plan = PairPlan((*plan.blocks, pool))
    manifest = up_to_date(folder, REQUESTS[part], parents, CODE_VERSION)
    if manifest and not missing_scores(store, plan, part, manifest.details["unscorable"]):
        planned, shards = manifest.counts["wanted"], len(store.shards)
        progress.say(f"all {planned:,} scores are stored already, in {shards:,} shards")
        return ScoreResult(home, folder, manifest, True, part, model, plan, store, None)
    from delift_pipeline.scoring.model import load_encoder

    ids = pl.DataFrame({"record_id": list(plan.records())})
    frame = ids.join(
        known_records(home, dataset), on="record_id", how="inner", maintain_order="left"
    )
    if encoded is None:
        encoded = encode_records(load_encoder(model), frame, progress)
    refuse_unscorable(dataset.pool, encoded.unscorable, "records of the pool")
    parts = PARTS if with_baseline else (part,)
    report = score_plan(home, model, frame, plan, progress, parts=parts, encoded=encoded)
    if part == "in_context":
        content = digest_json({block.name: store.digest(block) for block in plan.blocks})
    else:
        records = scorable_records(plan, report.unscorable)
        scores = (*store.baseline(records), *store.answer_sums(records))
        arrays = digest_bytes(*(array.tobytes() for array in scores))
        content = digest_json([list(records), arrays])
    manifest = Manifest(
        kind="scores",
        content_hash=content,
        parents=parents,
        fingerprint=fingerprint,
        counts={
            "wanted": PASSES * len(list(plan.records())) if part == "baseline" else plan.pairs,
            "pairs": report.pairs_scored + report.pairs_reused,
            "left_out": report.pairs_left_out,
            "unscorable": len(report.unscorable),
        },
        details={
            "unscorable": report.unscorable,
            "cuts": report.cuts,
            "engine": report.engine,
        },
        request=REQUESTS[part],
        code_version=CODE_VERSION,
        run_id=run_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Delete the plot of the former scores before the manifest that replaces them is written.
    (folder / DISTANCES_PLOT).unlink(missing_ok=True)
    manifest.write(folder)
    reused = report.pairs_scored == 0
    return ScoreResult(home, folder, manifest, reused, part, model, plan, store, report)


def unscorable_of(home: Home, version: str, fingerprint: str | None) -> dict[str, str]:
    """Return why records cannot be scored, by record_id; empty if the version is not scored."""
    if fingerprint is None:
        return {}
    manifest = read_manifest(home.version_scores(version, fingerprint, "in_context"))
    return manifest.details["unscorable"] if manifest else {}


def encode_records(encoder: "Encoder", frame: pl.DataFrame, progress: Progress) -> "EncodedRecords":
    """Encode records, and tell the user first what is special about their prompts."""
    for note in encoder.notes:
        progress.say(note)
    with track_large(progress, "tokenised", frame.height, "records") as meter:
        return encoder.encode(frame, meter.advance)


def score_plan(
    home: Home,
    options: ModelOptions,
    frame: pl.DataFrame,
    plan: PairPlan,
    progress: Progress,
    *,
    parts: Sequence[Part] = PARTS,
    encoded: "EncodedRecords | None" = None,
) -> ScoreReport:
    """Compute the missing scores of a plan. The model is loaded only if a score is missing.

    `frame` holds all records of the plan (`RECORD_SCHEMA`), and `encoded` the same records if they
    are encoded already. The report is that of the last of `parts`.

    Raises:
        InputError: the model cannot be used, or the home cannot be written.
        DeliftError: the model's output is not finite.
    """
    from delift_pipeline.scoring.model import load_encoder, load_scorer
    from delift_pipeline.scoring.run import score_baseline, score_pairs
    from delift_pipeline.scoring.store import PairRequest
    from delift_pipeline.scoring.workers import score_with_workers

    store = ScoreStore(home.scores(fingerprint_of(options).digest))
    if encoded is None:
        encoded = encode_records(load_encoder(options), frame, progress)
    missing = {part: missing_scores(store, plan, part, encoded.unscorable) for part in parts}
    if not any(missing.values()):
        pairs, alone = PairRequest(plan, encoded, store), parts[-1] == "baseline"
        return ScoreReport(
            pairs_scored=0,
            pairs_reused=PASSES * len(encoded.ids) if alone else pairs.pairs,
            pairs_left_out=0 if alone else pairs.left_out,
            shards_before=len(store.shards),
            shards_written=0,
            seconds=0.0,
            halved=0,
            engine={},
            cuts=dict(encoded.cuts),
            unscorable=dict(encoded.unscorable),
        )
    refuse_unwritable_folder((home.shared or home).root, "--home")
    rate = stored_rate(store)
    if parts[-1] == "in_context" and options.workers > 1:
        announce_scoring(frame.height, missing["in_context"], rate, progress)
        alone = "baseline" in parts
        return score_with_workers(options, store, frame, encoded, plan, progress, baseline=alone)
    model = load_scorer(options)
    # In the graph each part is a step of its own, which shows its rate while it runs.
    if len(parts) > 1 and frame.height > LARGE:
        # A trial with vLLM would start its engine just for that.
        if not rate and options.engine != "vllm":
            from delift_pipeline.scoring.engines import engine_for

            rate = pairs_per_second(engine_for(model), encoded)
        announce_scoring(frame.height, missing["in_context"], rate, progress)
    score = {
        "baseline": lambda: score_baseline(model, store, encoded, progress, support=True),
        "in_context": lambda: score_pairs(model, store, encoded, plan, progress),
    }
    return [score[part]() for part in parts][-1]


def missing_scores(
    store: ScoreStore, plan: PairPlan, part: Part, unscorable: Mapping[str, str]
) -> int:
    """Count the scores of a plan that are not stored, without those of unscorable records."""
    if part == "baseline":
        return missing_passes(store, scorable_records(plan, unscorable))
    return sum(scorable_pairs(block, unscorable) for block in store.missing(plan).blocks)


def missing_passes(store: ScoreStore, record_ids: Sequence[str]) -> int:
    """Count the passes over answers without a demonstration that are not stored."""
    prompted, unprompted = (np.isnan(sums) for sums in store.answer_sums(record_ids))
    alone = prompted | (store.baseline(record_ids).tokens == 0)
    return int(alone.sum() + unprompted.sum())


def scorable_records(plan: PairPlan, unscorable: Mapping[str, str]) -> tuple[str, ...]:
    """Return the records of a plan that can be scored."""
    return tuple(record for record in plan.records() if record not in unscorable)


def scorable_pairs(block: PairBlock, unscorable: Mapping[str, str]) -> int:
    """Count the pairs of a block in which both records can be scored."""
    good = np.array([record not in unscorable for record in block.targets], dtype=bool)
    return sum(
        int(good[block.targets_of(place)].sum())
        for place, record in enumerate(block.demonstrations)
        if record not in unscorable
    )
