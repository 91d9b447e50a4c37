"""Costs of records and pairs: the tokens of records, and the pairs that an arm lacks."""

import polars as pl

from delift_pipeline.core.home import Home
from delift_pipeline.core.manifest import read_manifest
from delift_pipeline.lineage.version import find_existing_records
from delift_pipeline.records.schema import TEXT_FIELDS
from delift_pipeline.records.stored import DatasetVersion
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.plan import PairBlock, PairPlan
from delift_pipeline.scoring.report import duration_text, stored_rate
from delift_pipeline.scoring.store import ScoreStore
from delift_pipeline.selection.budget import TOKENS, BudgetText, parse_budget
from delift_pipeline.stages.arms import Arm, load_arms
from delift_pipeline.stages.plan import reason_not_dense

STEPS_TO_REPEAT = "pair_plan, in_context_logprobs and utility_kernel"


def cost_sentence(
    home: Home, dataset: DatasetVersion, arm: Arm, fingerprint: str, absent: list[str]
) -> str:
    """Say why an arm cannot select without the `absent` kernel blocks, and what these cost."""
    store = ScoreStore(home.scores(fingerprint))

    def cost(pairs: int, of: str = "") -> str:
        rate = stored_rate(store)
        time = f", about {duration_text(pairs / rate)} here" if rate and pairs else ""
        return f"needs {pairs:,} more pairs{of}{time}"

    every = f"Set plan.coverage to all in arms.yaml, and materialise {STEPS_TO_REPEAT} again"
    if "self" in absent:
        plan = read_manifest(home.plan(dataset.version))
        planned = plan.details["blocks"].get("self", {}).get("pairs", 0) if plan else 0
        return f"arm {arm.name} {cost(dataset.pool.height**2 - planned)}. {every}"
    if "replay" in absent:
        ids = tuple(find_existing_records(home, dataset, arm.name).records["record_id"])
        if why := reason_not_dense(dataset, len(ids), load_arms(home).plan):
            more = store.missing(PairPlan((PairBlock("replay", ids, ids),))).pairs
            return (
                f"arm {arm.name} replays from {len(ids):,} existing records, and "
                f"{cost(more, ' of them')}, which are not planned ({why}). {every}, or set the "
                "arm's option replay to 0"
            )
    return (
        f"arm {arm.name} needs the {' and '.join(absent)} pairs of {dataset.version}, which are "
        f"not planned. Materialise {STEPS_TO_REPEAT} again (delift run --version {dataset.version} "
        f"--arm {arm.name})"
    )


def with_token_counts(pool: pl.DataFrame, budget: BudgetText, model: ModelOptions) -> pl.DataFrame:
    """Return the pool with a column `tokens` if the budget is in tokens, else the pool unchanged.

    The model's tokenizer counts instruction, input and output, without the text of a template.

    Raises:
        InputError: the budget is not valid, or the model has no tokenizer.
    """
    if parse_budget(budget, pool.height).tokens is None:
        return pool
    from delift_pipeline.scoring.model import load_tokenizer
    from delift_pipeline.scoring.model_files import model_folder

    tokenizer = load_tokenizer(model_folder(model), model)
    total = pl.Series(TOKENS, [0] * pool.height)
    for name in TEXT_FIELDS:
        encoded = tokenizer(pool[name].fill_null("").to_list(), add_special_tokens=False)
        total += pl.Series([len(ids) for ids in encoded["input_ids"]])
    return pool.with_columns(total.alias(TOKENS))
