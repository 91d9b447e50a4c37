"""The graph of one home: assets, checks, resources, jobs, sensors and schedules."""

import dagster as dg

from assets.evaluation import eval_report, leaderboard
from assets.ingest import raw_dataset
from assets.scoring import baseline_logprobs, in_context_logprobs, pair_plan
from assets.selection import subset, utility_kernel
from assets.source import with_code_references
from assets.training import adapter
from delift_pipeline.core.home import Home
from delift_pipeline.orchestration.automation import executor
from delift_pipeline.orchestration.jobs import ALL_JOBS, ALL_SCHEDULES
from delift_pipeline.orchestration.sensors import build_sensors
from delift_pipeline.stages.arms import Arms, load_arms
from resources import (
    ComputeResource,
    EmbedderResource,
    JudgeResource,
    LanguageModelResource,
    StoreResource,
    TrackingResource,
)

ASSETS = (
    raw_dataset,
    pair_plan,
    baseline_logprobs,
    in_context_logprobs,
    utility_kernel,
    subset,
    adapter,
    eval_report,
    leaderboard,
)


def build_assets(arms: Arms) -> list[dg.AssetsDefinition]:
    """All assets, with the partitions and the retries that these arms ask for."""
    return with_code_references([build(arms) for build in ASSETS])


def build_definitions(home: Home) -> dg.Definitions:
    """The graph as the home's `arms.yaml` now describes it; takes some hundredths of a second.

    Raises:
        Refused: the `arms.yaml` is faulty.
    """
    arms = load_arms(home)
    # Where the environment names the home, run configurations hold no path: a home can be moved.
    named = "" if home == Home.at() else str(home.root)
    return dg.Definitions(
        assets=build_assets(arms),
        jobs=ALL_JOBS,
        sensors=build_sensors(arms.automation.seconds),
        schedules=ALL_SCHEDULES,
        executor=executor(arms.automation),
        resources={
            "store": StoreResource(home=named),
            "language_model": LanguageModelResource(),
            "compute": ComputeResource(),
            "embedder": EmbedderResource(),
            "tracking": TrackingResource(),
            "judge": JudgeResource(),
        },
    )
