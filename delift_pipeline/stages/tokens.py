"""What records cost where a budget is given in tokens: counted by the model that is trained."""

import polars as pl

from delift_pipeline.records.schema import TEXT_FIELDS
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.selection.budget import TOKENS, BudgetText, parse_budget


def counted(pool: pl.DataFrame, budget: BudgetText, model: ModelOptions) -> pl.DataFrame:
    """The pool with a column `tokens`, where the budget is in tokens; else the pool as it is.

    Instruction, input and output are counted with the model's tokenizer, without what a template
    writes around them.

    Raises:
        Refused: the budget means nothing, or the model has no tokenizer.
    """
    if parse_budget(budget, pool.height).tokens is None:
        return pool
    from delift_pipeline.scoring.model import load_tokenizer
    from delift_pipeline.scoring.model_files import model_folder

    tokenizer = load_tokenizer(model_folder(model), model)
    total = pl.Series(TOKENS, [0] * pool.height)
    for name in TEXT_FIELDS:
        found = tokenizer(pool[name].fill_null("").to_list(), add_special_tokens=False)
        total += pl.Series([len(ids) for ids in found["input_ids"]])
    return pool.with_columns(total.alias(TOKENS))
