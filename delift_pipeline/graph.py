"""The graph of one home: assets, checks, resources, jobs, sensors and schedules."""

import dagster as dg

import resources
from assets import evaluation, ingest, scoring, selection, training
from assets.source import with_code_references
from delift_pipeline.core.home import Home
from delift_pipeline.orchestration.jobs import ALL_JOBS, ALL_SCHEDULES, build_executor
from delift_pipeline.orchestration.sensors import build_sensors
from delift_pipeline.stages.arms import Arms, load_arms

ASSETS = (
    *(ingest.raw_dataset, scoring.pair_plan, scoring.baseline_logprobs),
    *(scoring.in_context_logprobs, selection.utility_kernel, selection.subset),
    *(training.adapter, evaluation.eval_report, evaluation.leaderboard),
)


def build_assets(arms: Arms) -> list[dg.AssetsDefinition]:
    """Build all assets, with the partitions and retries that these arms need."""
    return with_code_references([build(arms) for build in ASSETS])


def build_definitions(home: Home) -> dg.Definitions:
    """Build the graph from the home's present `arms.yaml`, in some hundredths of a second.

    Raises:
        InputError: the `arms.yaml` is faulty.
    """
    arms = load_arms(home)
    # If the environment names the home, run configurations hold no path, so a home can be moved.
    home_path = "" if home == Home.at() else str(home.root)
    return dg.Definitions(
        assets=build_assets(arms),
        jobs=ALL_JOBS,
        sensors=build_sensors(arms.automation.seconds),
        schedules=ALL_SCHEDULES,
        executor=build_executor(arms.automation),
        resources={
            "store": resources.StoreResource(home=home_path),
            "language_model": resources.LanguageModelResource(),
            "compute": resources.ComputeResource(),
            "embedder": resources.EmbedderResource(),
            "tracking": resources.TrackingResource(),
            "judge": resources.JudgeResource(),
        },
    )
