"""What more it would take: cost before work, in the sentence that refuses an arm."""

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.lineage.existing import existing_of
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import duration_text, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.plan import too_dear

REDO = "pair_plan, in_context_logprobs and utility_kernel"


def cost_sentence(
    home: Home, dataset: DatasetVersion, arm: Arm, fingerprint: str, absent: list[str]
) -> str:
    """Why an arm cannot be chosen from the blocks there are, and what the rest would cost.

    Args:
        home: The home.
        dataset: The version.
        arm: The arm.
        fingerprint: The scoring fingerprint.
        absent: Kernel blocks the arm reads that are not there.
    """
    store = ScoreStore(home.scores(fingerprint))
    if "self" not in absent and (said := _replay_sentence(home, dataset, arm, store, absent)):
        return said
    if "self" not in absent:
        named = " and ".join(absent)
        return (
            f"arm {arm.name} needs the {named} pairs of {dataset.version}, which were not planned: "
            f"materialise {REDO} again (delift run --version {dataset.version} --arm {arm.name})"
        )
    plan = read_manifest(home.plan(dataset.version))
    planned = plan.details["blocks"].get("self", {}).get("pairs", 0) if plan else 0
    more = dataset.pool.height**2 - planned
    return (
        f"arm {arm.name} needs {more:,} more pairs{_time(store, more)}; set coverage: all "
        f"(plan.coverage in arms.yaml) and materialise {REDO} again"
    )


def _replay_sentence(
    home: Home, dataset: DatasetVersion, arm: Arm, store: ScoreStore, absent: list[str]
) -> str | None:
    """What replay would cost where its pairs are not planned for their number; else None."""
    if "replay" not in absent:
        return None
    ids = tuple(existing_of(home, dataset, arm.name).records["record_id"])
    if (why := too_dear(dataset, len(ids), load_arms(home).plan)) is None:
        return None
    more = store.missing(PairPlan((PairBlock("replay", ids, ids),))).pairs
    return (
        f"arm {arm.name} replays from {len(ids):,} existing records, and needs {more:,} more pairs "
        f"of them{_time(store, more)}, which are not planned ({why}); set coverage: all "
        f"(plan.coverage in arms.yaml) and materialise {REDO} again, or set the arm's replay to 0"
    )


def _time(store: ScoreStore, pairs: int) -> str:
    rate = stored_rate(store)
    return f", about {duration_text(pairs / rate)} here" if rate and pairs else ""
