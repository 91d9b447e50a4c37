"""Scoring: which pairs, each record's answer alone, and after each demonstration."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from assets.common import MODEL_RESOURCES, Step, asset_of
from assets.door import GPU_POOL
from assets.outcome import PREVIEW_ROWS, Check, Facts, Outcome, load_plot
from delift_pipeline.core.plots import histogram_png
from delift_pipeline.orchestration.jobs import on_new_data_version
from delift_pipeline.orchestration.partitions import dataset_version
from delift_pipeline.scoring.options import portable_name
from delift_pipeline.scoring.plan import read_plan
from delift_pipeline.stages import plan, score

PLOTTED_COLUMNS = 200
"""The plot of distances uses the pairs of at most this many demonstrations of a block."""


@asset_of(
    plan.plan_pairs,
    dataset_version,
    deps=["raw_dataset"],
    group_name="scoring",
    kinds={"scikitlearn", "numpy"},
    automation_condition=on_new_data_version,
    required_resource_keys={"store", "embedder"},
)
def pair_plan(step: Step) -> Outcome:
    """Which (target, demonstration) pairs the enabled arms of this version need scored."""
    arms = step.resources.embedder.apply_to(step.resources.store.arms())
    return plan_outcome(plan.plan_pairs(step.home, step.version, arms, step.run_id))


@asset_of(
    score.score_version,
    dataset_version,
    deps=["pair_plan"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    required_resource_keys=MODEL_RESOURCES,
)
def baseline_logprobs(step: Step) -> Outcome:
    """Teacher-forced log-probabilities of each record's answer without a demonstration."""
    return _score_part(step, "baseline")


@asset_of(
    score.score_version,
    dataset_version,
    deps=["pair_plan", "baseline_logprobs"],
    group_name="scoring",
    kinds={"pytorch", "huggingface"},
    automation_condition=on_new_data_version,
    pool=GPU_POOL,
    required_resource_keys=MODEL_RESOURCES,
)
def in_context_logprobs(step: Step) -> Outcome:
    """The same log-probabilities after each planned demonstration; resumes at the first gap."""
    return _score_part(step, "in_context")


def _score_part(step: Step, part: score.Part) -> Outcome:
    home, version, model = step.home, step.version, step.model
    return scores_outcome(
        score.score_version(home, version, part, model, step.progress, step.run_id)
    )


def plan_outcome(planned: plan.PlanResult) -> Outcome:
    """Convert a pair plan to what Dagster shows."""
    folder, manifest, inputs = planned.folder, planned.manifest, planned.inputs
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
    if inputs.notes:
        tables["arms whose pairs are not planned"] = pl.DataFrame({"why": list(inputs.notes)})
    if lonely.height:
        tables["records without neighbours"] = lonely.head(PREVIEW_ROWS)

    def draw() -> bytes:
        counts = records["neighbours"].to_numpy()
        return histogram_png(counts, "records of the pool", "near prompts found")

    return Outcome.of(
        planned,
        facts={**manifest.counts, "coverage": inputs.self_pairs},
        plots={"neighbours": load_plot(folder / "neighbours.png", draw)},
        tables=tables,
        checks={
            "neighbours": Check(
                unexplained == 0,
                f"{alone} records have no neighbours, {unexplained} of them without a reason",
                {"without_neighbours": alone},
            )
        },
    )


def scores_outcome(scored: score.ScoreResult) -> Outcome:
    """Convert scores to what Dagster shows."""
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
        plots={"distances": load_plot(plot, lambda: _distances_png(scored))},
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


def _distances_png(scored: score.ScoreResult) -> bytes:
    """Plot the distances d of the answers, alone or after the first demonstrations."""
    distances = [np.empty(0, np.float32)]
    for squared, _, tokens in _scores(scored, PLOTTED_COLUMNS):
        there = (tokens > 0) & ~np.isnan(squared)
        distances.append(np.sqrt(squared[there] / tokens[there]))
    title = "answers" if scored.part == "baseline" else "answers after a demonstration"
    return histogram_png(
        np.concatenate(distances), title, "d, from 0 (certain of every token) to 1"
    )


def _finite(scored: score.ScoreResult) -> bool:
    """Whether all scores are finite with log-probabilities of at most 0."""
    return all(
        (np.isfinite(squared) & (squared >= 0) & np.isfinite(logprob) & (logprob <= 0)).all()
        for squared, logprob, _ in _scores(scored)
    )


def _scores(
    scored: score.ScoreResult, most: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (T d^2, log-probability, tokens T) of all answers alone, or for one demonstration each.

    `most` limits the demonstrations of a block. Pairs without a score are left out here, because
    the check `complete` reports them.
    """
    store, unscorable = scored.store, scored.unscorable
    if scored.part == "baseline":
        alone = store.baseline(score.scorable_records(scored.plan, unscorable))
        yield alone.squared_distance, alone.sum_logprob, alone.tokens
        return
    for block in scored.plan.blocks:
        targets = tuple(record for record in block.targets if record not in unscorable)
        tokens = store.baseline(targets).tokens
        for record in block.demonstrations[:most]:
            if record not in unscorable:
                column = store.column(record, targets)
                there = ~np.isnan(column.sum_logprob)
                yield column.squared_distance[there], column.sum_logprob[there], tokens[there]
