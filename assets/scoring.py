"""Scoring: which pairs, each record's answer alone, and after each demonstration."""

import dagster as dg
import numpy as np
import polars as pl

from assets.common import asset_per_version, version_of
from assets.door import progress
from assets.outcome import PREVIEW_ROWS, Check, Facts, Outcome, kept_plot
from assets.pool import GPU_POOL
from delift_pipeline.core.plots import histogram_png
from delift_pipeline.orchestration.automation import on_new_data_version
from delift_pipeline.scoring.options import portable_name
from delift_pipeline.scoring.plan import read_plan
from delift_pipeline.stages import plan, score
from resources import ComputeResource, EmbedderResource, LanguageModelResource, StoreResource

PLOTTED_COLUMNS = 200
"""Demonstrations whose pairs the picture of the scores is drawn from."""


@asset_per_version(
    deps=["raw_dataset"],
    group_name="scoring",
    kinds={"scikitlearn", "numpy"},
    automation_condition=on_new_data_version,
    code_version=plan.CODE_VERSION,
)
def pair_plan(
    context: dg.AssetExecutionContext, store: StoreResource, embedder: EmbedderResource
) -> Outcome:
    """Which (target, demonstration) pairs the enabled arms of this version need scored."""
    arms = embedder.applied_to(store.arms())
    version = context.partition_key
    return plan_outcome(plan.plan_pairs(store.open(), version, arms, context.run_id))


@asset_per_version(
    deps=["pair_plan"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    code_version=score.CODE_VERSION,
)
def baseline_logprobs(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Outcome:
    """Teacher-forced log-probabilities of each record's answer without a demonstration."""
    home, version, model = version_of(context, store, language_model, compute)
    shown, run_id = progress(context), context.run_id
    return scores_outcome(score.score_version(home, version, "baseline", model, shown, run_id))


@asset_per_version(
    deps=["pair_plan", "baseline_logprobs"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    code_version=score.CODE_VERSION,
)
def in_context_logprobs(
    context: dg.AssetExecutionContext,
    store: StoreResource,
    language_model: LanguageModelResource,
    compute: ComputeResource,
) -> Outcome:
    """The same log-probabilities after each planned demonstration; resumes at the first gap."""
    home, version, model = version_of(context, store, language_model, compute)
    shown, run_id = progress(context), context.run_id
    return scores_outcome(score.score_version(home, version, "in_context", model, shown, run_id))


def plan_outcome(planned: plan.Planned) -> Outcome:
    """What is shown of a pair plan."""
    folder, manifest, wanted = planned.folder, planned.manifest, planned.wanted
    blocks = [
        {
            "block": block.name,
            "targets": len(block.targets),
            "demonstrations": len(block.demonstrations),
            "pairs": block.pairs,
            "form": "all" if block.dense else "neighbours",
        }
        for block in read_plan(folder).blocks
    ]
    records = pl.read_parquet(folder / "records.parquet")
    lonely = records.filter(pl.col("neighbours") == 0)
    alone, unexplained = manifest.counts["without_neighbours"], lonely["reason"].null_count()
    tables = {"blocks": pl.DataFrame(blocks)}
    if wanted.notes:
        tables["arms whose pairs are not planned"] = pl.DataFrame({"why": list(wanted.notes)})
    if lonely.height:
        tables["records without neighbours"] = lonely.head(PREVIEW_ROWS)

    def draw() -> bytes:
        counts = records["neighbours"].to_numpy()
        return histogram_png(counts, "records of the pool", "near prompts found")

    return Outcome.of(
        planned,
        facts={**manifest.counts, "coverage": wanted.self_pairs},
        plots={"neighbours": kept_plot(folder / "neighbours.png", draw)},
        tables=tables,
        checks={
            "neighbours": Check(
                unexplained == 0,
                f"{alone} records have no neighbours, {unexplained} of them without a reason",
                {"without_neighbours": alone},
            )
        },
    )


def scores_outcome(scored: score.Scored) -> Outcome:
    """What is shown of scores."""
    manifest, report, model = scored.manifest, scored.report, scored.model
    facts: Facts = {
        **{name: manifest.counts[name] for name in ("wanted", "left_out", "unscorable")},
        "pairs_scored": report.pairs_scored if report else 0,
        "pairs_reused": report.pairs_reused if report else manifest.counts["pairs"],
        "shards": len(scored.store.shards),
        "model": portable_name(model.model),
        "revision": model.revision or "",
        "template": model.template,
        "dtype": model.dtype,
    }
    if report:
        facts |= {
            "pairs_per_second": report.pairs_per_second,
            "engine": str(report.engine.get("engine", "")),
            "halved_batches": report.halved,
        }
    cuts, unscorable = manifest.details["cuts"], list(scored.unscorable.items())[:PREVIEW_ROWS]
    missing = score.missing_scores(scored.store, scored.plan, scored.part, scored.unscorable)
    complete = "some scores of the plan are missing" if missing else "every planned score is there"
    plot = scored.folder / score.DISTANCES_PLOT
    return Outcome.of(
        scored,
        facts=facts,
        plots={"distances": kept_plot(plot, lambda: _distances_png(scored))},
        tables={
            "cuts": pl.DataFrame(list(cuts.items()), schema=["kind", "records"], orient="row"),
            "unscorable records": pl.DataFrame(
                unscorable, schema=["record_id", "why"], orient="row"
            ),
        },
        checks={
            "complete": Check(not missing, complete),
            "finite": Check(_finite(scored), "log-probabilities are finite and at most 0"),
        },
    )


def _distances_png(scored: score.Scored) -> bytes:
    """The distances d of the answers, alone or after the first demonstrations."""
    store, label = scored.store, "d, from 0 (certain of every token) to 1"
    if scored.part == "baseline":
        alone = store.baseline(tuple(scored.plan.records()))
        return histogram_png(_distances(alone.squared_distance, alone.tokens), "answers", label)
    found = [np.empty(0, np.float32)]
    for block in scored.plan.blocks:
        tokens = store.baseline(block.targets).tokens
        for shown in block.demonstrations[:PLOTTED_COLUMNS]:
            found.append(_distances(store.column(shown, block.targets).squared_distance, tokens))
    return histogram_png(np.concatenate(found), "answers after a demonstration", label)


def _distances(squared: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The distance of each answer that is scored."""
    there = (tokens > 0) & ~np.isnan(squared)
    return np.sqrt(squared[there] / tokens[there])


def _finite(scored: score.Scored) -> bool:
    """Whether all scores are finite with log-probabilities of at most 0, read block by block."""
    store, unscorable = scored.store, scored.unscorable
    if scored.part == "baseline":
        found = store.baseline(score.scorable_records(scored.plan, unscorable))
        return _sound(found.squared_distance, found.sum_logprob)
    for block in scored.plan.blocks:
        targets = tuple(record for record in block.targets if record not in unscorable)
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
