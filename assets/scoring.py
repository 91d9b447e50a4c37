"""Scoring: the pair plan, and log-probabilities without and after a demonstration."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from assets.common import MODEL_RESOURCES, Step, asset_of
from assets.execution import GPU_POOL
from assets.outcome import PREVIEW_ROWS, Check, Facts, Outcome, load_plot
from delift_pipeline.core.plots import histogram_png
from delift_pipeline.orchestration.jobs import on_new_data_version
from delift_pipeline.orchestration.partitions import dataset_version
from delift_pipeline.scoring.fingerprint import fingerprint_of
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
    """The (target, demonstration) pairs that the enabled arms of this version need."""
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
    """The log-probability of each record's answer without a demonstration, with and without prompt.

    It is teacher-forced. The difference is the support of the record.
    """
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
    """The same log-probability after each planned demonstration. Only missing pairs are scored."""
    return _score_part(step, "in_context")


def _score_part(step: Step, part: score.Part) -> Outcome:
    home, version, model = step.home, step.version, step.model
    return scores_outcome(
        score.score_version(home, version, part, model, step.progress, step.run_id)
    )


def plan_outcome(result: plan.PlanResult) -> Outcome:
    """Convert a pair plan to what Dagster shows."""
    folder, manifest, inputs = result.folder, result.manifest, result.inputs
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
    isolated = records.filter(pl.col("neighbours") == 0)
    count, unexplained = manifest.counts["without_neighbours"], isolated["reason"].null_count()
    tables = {"blocks": pl.DataFrame(blocks)}
    if inputs.notes:
        tables["arms whose pairs are not planned"] = pl.DataFrame({"why": list(inputs.notes)})
    if isolated.height:
        tables["records without neighbours"] = isolated.head(PREVIEW_ROWS)

    def draw() -> bytes:
        counts = records["neighbours"].to_numpy()
        return histogram_png(counts, "records of the pool", "near prompts found")

    return Outcome.of(
        result,
        facts={**manifest.counts, "coverage": inputs.self_pairs},
        plots={"neighbours": load_plot(folder / "neighbours.png", draw)},
        tables=tables,
        checks={
            "neighbours": Check(
                unexplained == 0,
                f"{count} records have no neighbours, {unexplained} of them without a reason",
                {"without_neighbours": count},
            )
        },
    )


def scores_outcome(result: score.ScoreResult) -> Outcome:
    """Convert scores to what Dagster shows."""
    manifest, report, model = result.manifest, result.report, result.model
    facts: Facts = {
        **{name: manifest.counts[name] for name in ("wanted", "left_out", "unscorable")},
        "pairs_scored": report.pairs_scored if report else 0,
        "pairs_reused": report.pairs_reused if report else manifest.counts["pairs"],
        "shards": len(result.store.shards),
        "model": portable_name(model.model),
        "revision": model.revision or "",
        "template": fingerprint_of(model).template,
        "dtype": model.dtype,
    }
    if report:
        facts |= {
            "pairs_per_second": report.pairs_per_second,
            "engine": str(report.engine.get("engine", "")),
            "halved_batches": report.halved,
        }
    cuts, unscorable = manifest.details["cuts"], list(result.unscorable.items())[:PREVIEW_ROWS]
    missing = score.missing_scores(result.store, result.plan, result.part, result.unscorable)
    complete = "some planned scores are missing" if missing else "no planned score is missing"
    plot = result.folder / score.DISTANCES_PLOT
    return Outcome.of(
        result,
        facts=facts,
        plots={"distances": load_plot(plot, lambda: _distances_png(result))},
        tables={
            "cuts": pl.DataFrame(list(cuts.items()), schema=["kind", "records"], orient="row"),
            "unscorable records": pl.DataFrame(
                unscorable, schema=["record_id", "why"], orient="row"
            ),
        },
        checks={
            "complete": Check(not missing, complete),
            "finite": Check(_finite(result), "log-probabilities are finite and at most 0"),
        },
    )


def _distances_png(result: score.ScoreResult) -> bytes:
    """Plot the distances d of the answers, alone or after the first demonstrations."""
    distances = [np.empty(0, np.float32)]
    for squared, _, tokens in _scores(result, PLOTTED_COLUMNS):
        valid = (tokens > 0) & ~np.isnan(squared)
        distances.append(np.sqrt(squared[valid] / tokens[valid]))
    title = "answers" if result.part == "baseline" else "answers after a demonstration"
    return histogram_png(
        np.concatenate(distances), title, "d, from 0 (certain of every token) to 1"
    )


def _finite(result: score.ScoreResult) -> bool:
    """Whether all scores are finite with log-probabilities of at most 0."""
    if result.part == "baseline":
        records = score.scorable_records(result.plan, result.unscorable)
        sums = np.concatenate(result.store.answer_sums(records))
        # Missing ones are left out here, because the check `complete` reports them.
        if not (np.isnan(sums) | (np.isfinite(sums) & (sums <= 0))).all():
            return False
    return all(
        (np.isfinite(squared) & (squared >= 0) & np.isfinite(logprob) & (logprob <= 0)).all()
        for squared, logprob, _ in _scores(result)
    )


def _scores(
    result: score.ScoreResult, most: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (T d^2, log-probability, tokens T) of all answers alone, or for one demonstration each.

    `most` limits the demonstrations of a block. Pairs without a score are left out here, because
    the check `complete` reports them.
    """
    store, unscorable = result.store, result.unscorable
    if result.part == "baseline":
        baseline = store.baseline(score.scorable_records(result.plan, unscorable))
        yield baseline.squared_distance, baseline.sum_logprob, baseline.tokens
        return
    for block in result.plan.blocks:
        targets = tuple(record for record in block.targets if record not in unscorable)
        tokens = store.baseline(targets).tokens
        for record in block.demonstrations[:most]:
            if record not in unscorable:
                column = store.column(record, targets)
                valid = ~np.isnan(column.sum_logprob)
                yield column.squared_distance[valid], column.sum_logprob[valid], tokens[valid]
