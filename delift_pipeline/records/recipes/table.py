"""The benchmarks of the paper by name, and its transfers from one to another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.options import GENERAL, MetricName
from delift_pipeline.records.recipes import rows
from delift_pipeline.records.recipes.rows import Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """One benchmark.

    Attributes:
        name: As given on the command line.
        title: For people.
        hub: Its hub id; None where its files have to be given.
        files: Patterns of its files by split, in a folder or at the hub; the first that matches
            counts.
        columns: Columns that tell its own rows from rows in a record's columns.
        rule: One row in its own columns -> rows in a record's columns.
        metrics: What its publishers measure, beside the answer loss.
        note: What a user should know.
    """

    name: str
    title: str
    hub: str | None
    files: Mapping[str, tuple[str, ...]]
    columns: frozenset[str]
    rule: Callable[[Mapping[str, Any]], Rows]
    metrics: tuple[MetricName, ...]
    note: str = ""


def _files(train: str = "", test: str = "") -> dict[str, tuple[str, ...]]:
    """Patterns by split: one file of that name, else the hub's own."""
    found = {}
    for split, hub in (("train", train), ("test", test)):
        own = tuple(f"{split}.{end}" for end in ("jsonl", "json", "parquet", "csv"))
        found[split] = own + ((hub,) if hub else ())
    return found


def _recipe(
    name: str,
    title: str,
    hub: str | None,
    files: Mapping[str, tuple[str, ...]],
    columns: str,
    rule: Callable[[Mapping[str, Any]], Rows],
    metrics: tuple[MetricName, ...],
    note: str = "",
) -> Recipe:
    return Recipe(name, title, hub, files, frozenset(columns.split()), rule, metrics, note)


_TEXT: tuple[MetricName, ...] = (
    "answer_loss",
    "rouge1",
    "rouge2",
    "rougeL",
    "embedding_similarity",
)
_SPAN: tuple[MetricName, ...] = ("answer_loss", "squad_exact_match", "squad_f1")
_HOTPOT: tuple[MetricName, ...] = ("answer_loss", "squad_exact_match", "hotpotqa_f1")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe(
            "mix_instruct",
            "MixInstruct",
            "llm-blender/mix-instruct",
            _files("train_data_prepared.jsonl", "test_data_prepared.jsonl"),
            "instruction output candidates",
            rows.mix_instruct,
            _TEXT,
        ),
        _recipe(
            "p3",
            "P3 (the T0 mixture)",
            None,
            _files("*/train-*.parquet", "*/validation-*.parquet"),
            "inputs_pretokenized targets_pretokenized",
            rows.p3,
            _TEXT,
            "it has hundreds of templates, so a file or a folder of those that are wanted",
        ),
        _recipe(
            "hotpotqa",
            "HotpotQA",
            "hotpotqa/hotpot_qa",
            _files("distractor/train-*.parquet", "distractor/validation-*.parquet"),
            "question answer type",
            rows.hotpotqa,
            _HOTPOT,
        ),
        _recipe(
            "mmlu",
            "MMLU",
            "cais/mmlu",
            _files("all/auxiliary_train-*.parquet", "all/test-*.parquet"),
            "question choices answer",
            rows.mmlu,
            ("answer_loss", "choice_accuracy"),
        ),
        _recipe(
            "mt_bench",
            "MT-Bench, two turns",
            "HuggingFaceH4/mt_bench_prompts",
            _files("", "raw/question.jsonl"),
            "category reference",
            rows.mt_bench,
            _TEXT,
            "only turns with a reference answer make records; score answers with `delift judge`",
        ),
        _recipe(
            "gsm8k",
            "GSM8K",
            "openai/gsm8k",
            _files("main/train-*.parquet", "main/test-*.parquet"),
            "question answer",
            rows.gsm8k,
            ("answer_loss", "final_answer"),
        ),
        _recipe(
            "squad",
            "SQuAD 1.1",
            "rajpurkar/squad",
            _files("plain_text/train-*.parquet", "plain_text/validation-*.parquet"),
            "question context answers",
            rows.squad,
            _SPAN,
        ),
        _recipe(
            "query_rewriting",
            "Query rewriting (CANARD)",
            None,
            _files(),
            "History Question Rewrite",
            rows.query_rewriting,
            ("answer_loss", "exact_match", "rouge1", "rougeL"),
            "CANARD stands in for the paper's closed query-rewriting sets",
        ),
        _recipe(
            "alpaca",
            "Alpaca",
            "tatsu-lab/alpaca",
            _files("data/train-*.parquet"),
            "instruction input output",
            rows.alpaca,
            GENERAL,
        ),
        _recipe(
            "dolly",
            "Dolly",
            "databricks/databricks-dolly-15k",
            _files("databricks-dolly-15k.jsonl"),
            "instruction context response",
            rows.dolly,
            GENERAL,
        ),
    )
}
"""Every recipe by name."""


@dataclass(frozen=True)
class Transfer:
    """From one benchmark to another.

    Attributes:
        name: As given on the command line.
        pool: The recipe of the records to choose from; in the continual stage of the old ones.
        goal: The recipe of what the model should be good at; in the continual stage the new pool.
        stage: `task_specific`: one version whose target set is the goal's. `continual`: the old
            version, and the new one that follows it.
        note: What a user should know.
    """

    name: str
    pool: str
    goal: str
    stage: Literal["task_specific", "continual"]
    note: str = ""


TRANSFERS: dict[str, Transfer] = {
    transfer.name: transfer
    for transfer in (
        Transfer("hotpotqa-mmlu", "hotpotqa", "mmlu", "task_specific"),
        Transfer("mix_instruct-mt_bench", "mix_instruct", "mt_bench", "task_specific"),
        Transfer("mix_instruct-gsm8k", "mix_instruct", "gsm8k", "task_specific"),
        Transfer("squad-hotpotqa", "squad", "hotpotqa", "continual"),
        Transfer(
            "query_rewriting",
            "query_rewriting",
            "query_rewriting",
            "continual",
            "old and new domain are two halves of CANARD's topics: it stands in for the paper's "
            "closed query-rewriting sets",
        ),
    )
}
"""The paper's transfers by name."""


def recipe_of(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        Refused: there is none.
    """
    return _named(RECIPES, name, "recipe")


def transfer_of(name: str) -> Transfer:
    """The transfer of that name.

    Raises:
        Refused: there is none.
    """
    return _named(TRANSFERS, name, "transfer")


def _named(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        known = ", ".join(table)
        raise Refused(Fault(f"{name!r} is no {kind}; there are {known}", field=kind))
    return table[name]
