"""Jobs: named parts of the graph to launch from the UI, a schedule or the command line."""

import dagster as dg

PER_VERSION = (
    "raw_dataset",
    "pair_plan",
    "baseline_logprobs",
    "in_context_logprobs",
    "utility_kernel",
)
PER_ARM = ("subset", "adapter", "eval_report")

score_job = dg.define_asset_job(
    "score_version",
    selection=list(PER_VERSION),
    description="Ingest a version, plan its pairs, score what is missing, build the kernel.",
)
select_job = dg.define_asset_job(
    "select_arm", selection=["subset"], description="Choose one arm's subset of a scored version."
)
arm_job = dg.define_asset_job(
    "finetune_arm",
    selection=list(PER_ARM),
    description="Choose one arm's subset of a scored version, fine-tune on it, evaluate.",
)
leaderboard_job = dg.define_asset_job(
    "refresh_leaderboard", selection=["leaderboard"], description="Rebuild the leaderboard."
)

ALL_JOBS = [score_job, select_job, arm_job, leaderboard_job]
