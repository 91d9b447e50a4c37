"""The code location: assets, checks, resources, jobs, sensors and schedules."""

import dagster as dg

from assets.evaluation import eval_report, leaderboard
from assets.ingest import raw_dataset
from assets.scoring import baseline_logprobs, in_context_logprobs, pair_plan
from assets.selection import subset, utility_kernel
from assets.source import with_code_references
from assets.training import adapter
from delift_pipeline.automation import EXECUTOR
from delift_pipeline.jobs import ALL_JOBS
from delift_pipeline.schedules import ALL_SCHEDULES
from delift_pipeline.sensors import ALL_SENSORS
from resources.compute import ComputeResource
from resources.embedder import EmbedderResource
from resources.judge import JudgeResource
from resources.language_model import LanguageModelResource
from resources.store import StoreResource
from resources.tracking import TrackingResource

ALL_ASSETS = with_code_references(
    [
        raw_dataset,
        pair_plan,
        baseline_logprobs,
        in_context_logprobs,
        utility_kernel,
        subset,
        adapter,
        eval_report,
        leaderboard,
    ]
)

defs = dg.Definitions(
    assets=ALL_ASSETS,
    jobs=ALL_JOBS,
    sensors=ALL_SENSORS,
    schedules=ALL_SCHEDULES,
    executor=EXECUTOR,
    resources={
        "store": StoreResource(),
        "language_model": LanguageModelResource(),
        "compute": ComputeResource(),
        "embedder": EmbedderResource(),
        "tracking": TrackingResource(),
        "judge": JudgeResource(),
    },
)
