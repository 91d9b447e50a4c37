"""The benchmarks of the paper, and its transfers from one benchmark to another.

The rule of a recipe converts one row in the publisher's columns into records: usually one, and for
MT-Bench one for each turn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from delift_pipeline.core.errors import InputError

Row = Mapping[str, Any]
Rows = list[dict[str, str]]
Rule = Callable[[Row], Rows]

_LETTERS = "ABCDEFGHIJ"
_REWRITE = "Rewrite the last question so that it can be understood without the conversation."
_GENERAL = ("answer_loss", "exact_match", "rouge1", "rougeL", "embedding_similarity")
_HOTPOT = ("answer_loss", "squad_exact_match", "hotpotqa_f1")
_REWRITING = ("answer_loss", "exact_match", "rouge1", "rougeL")
_SPAN = ("answer_loss", "squad_exact_match", "squad_f1")
_TEXT = ("answer_loss", "rouge1", "rouge2", "rougeL", "embedding_similarity")


@dataclass(frozen=True)
class Recipe:
    """One benchmark, and how its rows become records.

    Attributes:
        hub: Its hub id, or None if users have to supply the files.
        files: Patterns of its files by split, in a folder or at the hub. The first match counts.
        columns: The publisher's columns, which identify rows that need the rule.
        rule: Converts a row in the publisher's columns into rows in the columns of records.
        metrics: The publisher's metrics, after the answer loss.
    """

    name: str
    title: str
    hub: str | None
    files: Mapping[str, tuple[str, ...]]
    columns: frozenset[str]
    rule: Rule
    metrics: tuple[str, ...]
    note: str = ""


RECIPES: dict[str, Recipe] = {}
"""All recipes by name."""
_HUB_FILES = {
    "mix_instruct": ("train_data_prepared.jsonl", "test_data_prepared.jsonl"),
    "p3": ("*/train-*.parquet", "*/validation-*.parquet"),
    "hotpotqa": ("distractor/train-*.parquet", "distractor/validation-*.parquet"),
    "mmlu": ("all/auxiliary_train-*.parquet", "all/test-*.parquet"),
    "mt_bench": ("", "raw/question.jsonl"),
    "gsm8k": ("main/train-*.parquet", "main/test-*.parquet"),
    "squad": ("plain_text/train-*.parquet", "plain_text/validation-*.parquet"),
    "alpaca": ("data/train-*.parquet", ""),
    "dolly": ("databricks-dolly-15k.jsonl", ""),
}
"""The files of the train and test split at the hub; empty for a split that is missing."""


def _recipe(
    title: str, hub: str | None, columns: str, metrics: tuple[str, ...], note: str = ""
) -> Callable[[Rule], Rule]:
    """Register a rule as the recipe of its name."""

    def register(rule: Rule) -> Rule:
        name, own = rule.__name__, frozenset(columns.split())
        files = {}
        for split, at_the_hub in zip(
            ("train", "test"), _HUB_FILES.get(name, ("", "")), strict=True
        ):
            local = (f"{split}.{ending}" for ending in ("jsonl", "json", "parquet", "csv"))
            files[split] = (*local, at_the_hub) if at_the_hub else tuple(local)
        RECIPES[name] = Recipe(name, title, hub, files, own, rule, metrics, note)
        return rule

    return register


def _record(instruction: str, output: str, input: str | None, task: str, id: Any = None) -> Rows:
    texts = {"instruction": instruction, "input": input or "", "output": output, "task": task}
    return [{**texts, "source_id": str(id)} if id not in ("", None) else texts]


@_recipe("MixInstruct", "llm-blender/mix-instruct", "instruction output candidates", _TEXT)
def mix_instruct(row: Row) -> Rows:
    """Use the reference answer; the candidate answers of other models are left out."""
    return alpaca({**row, "task": f"mix_instruct/{str(row.get('id', '')).partition('/')[0]}"})


@_recipe(
    "P3 (the T0 mixture)",
    None,
    "inputs_pretokenized targets_pretokenized",
    _TEXT,
    note="it has hundreds of templates, so a file or a folder of those that are wanted",
)
def p3(row: Row) -> Rows:
    """Use the filled template as the instruction."""
    prompt, answer = row["inputs_pretokenized"].strip(), row["targets_pretokenized"].strip()
    return _record(prompt, answer, None, f"p3/{row.get('template') or 'p3'}")


@_recipe("HotpotQA", "hotpotqa/hotpot_qa", "question answer type", _HOTPOT)
def hotpotqa(row: Row) -> Rows:
    """Use the question, with its paragraphs (if any) as the input."""
    context = row.get("context") or {}
    paragraphs = zip(context.get("title", []), context.get("sentences", []), strict=True)
    text = "\n".join(
        f"[{i}] {title}: {''.join(parts).strip()}"
        for i, (title, parts) in enumerate(paragraphs, start=1)
    )
    task = f"hotpotqa/{row.get('type') or 'question'}"
    return _record(row["question"], row["answer"], text, task, row.get("id"))


@_recipe("MMLU", "cais/mmlu", "question choices answer", ("answer_loss", "choice_accuracy"))
def mmlu(row: Row) -> Rows:
    """Use the question with its lettered options as the input; the answer is a letter."""
    subject, answer = row["subject"], row["answer"]
    instruction = (
        f"The following is a multiple choice question about {subject.replace('_', ' ')}. "
        "Answer with the letter of the correct option."
    )
    options = [f"{_LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"])]
    letter = _LETTERS[answer] if isinstance(answer, int) else str(answer)
    return _record(instruction, letter, "\n".join([row["question"], *options]), f"mmlu/{subject}")


@_recipe(
    "MT-Bench, two turns",
    "HuggingFaceH4/mt_bench_prompts",
    "category reference",
    _TEXT,
    note="only turns with a reference answer make records; score answers with `delift judge`",
)
def mt_bench(row: Row) -> Rows:
    """Return a record for each turn that has a reference answer; its input has earlier turns."""
    turns, references = row.get("turns") or row.get("prompt") or [], row.get("reference") or []
    dialogue: list[str] = []
    records: Rows = []
    # A row may have fewer reference answers than turns.
    for number, (question, answer) in enumerate(zip(turns, references, strict=False), start=1):
        if not answer.strip():
            break
        task = f"mt_bench/{row.get('category') or 'chat'}/turn{number}"
        name = f"{row.get('question_id', row.get('prompt_id', ''))}-turn{number}"
        records += _record(question, answer, "\n".join(dialogue), task, name)
        dialogue += [f"User: {question}", f"Assistant: {answer}"]
    return records


@_recipe("GSM8K", "openai/gsm8k", "question answer", ("answer_loss", "final_answer"))
def gsm8k(row: Row) -> Rows:
    """Use the answer with its calculation; its last line is `#### number`."""
    return _record(row["question"], row["answer"], None, "gsm8k")


@_recipe("SQuAD 1.1", "rajpurkar/squad", "question context answers", _SPAN)
def squad(row: Row) -> Rows:
    """Use the question about a paragraph and its first answer; without an answer, no record."""
    answers = list((row.get("answers") or {}).get("text", []))
    if not answers:
        return []
    task = f"squad/{row.get('title') or 'question'}"
    return _record(row["question"], answers[0], row["context"], task, row.get("id"))


@_recipe(
    "Query rewriting (CANARD)",
    None,
    "History Question Rewrite",
    _REWRITING,
    note="CANARD stands in for the paper's closed query-rewriting sets",
)
def query_rewriting(row: Row) -> Rows:
    """Use the conversation as the input, and a rewrite of its last question as the answer."""
    topic, turns = list(row["History"])[:2], list(row["History"])[2:]
    texts = [*turns, row["Question"]]
    dialogue = [f"{'QA'[i % 2]}: {text}" for i, text in enumerate(texts)]
    input = "\n".join([f"Topic: {' / '.join(topic)}", *dialogue])
    name = f"{row.get('QuAC_dialog_id', '')}-q{row.get('Question_no', '')}"
    return _record(_REWRITE, row["Rewrite"], input, "query_rewriting/canard", name)


@_recipe("Alpaca", "tatsu-lab/alpaca", "instruction input output", _GENERAL)
def alpaca(row: Row) -> Rows:
    """Use the columns of a record; the column `text`, which repeats them, is left out."""
    task = row.get("task") or "alpaca"
    return _record(row["instruction"], row["output"], row.get("input"), task, row.get("id"))


@_recipe("Dolly", "databricks/databricks-dolly-15k", "instruction context response", _GENERAL)
def dolly(row: Row) -> Rows:
    """Use the context as the input."""
    task = f"dolly/{row.get('category') or 'instruction'}"
    return _record(row["instruction"], row["response"], row.get("context"), task)


@dataclass(frozen=True)
class Transfer:
    """An experiment with two benchmarks: select from one for the other.

    Attributes:
        pool: The recipe of the pool; in the continual stage, of the old version's pool.
        goal: The recipe of the target set; in the continual stage, of the new version's pool.
        stage: `task_specific` makes one version with a target set. `continual` makes an old
            version and a new one that continues it.
    """

    name: str
    pool: str
    goal: str
    stage: Literal["task_specific", "continual"]
    note: str = ""


_HALVES = (
    "old and new domain are two halves of CANARD's topics: it stands in for the paper's "
    "closed query-rewriting sets"
)
_TRANSFERS = (
    Transfer("hotpotqa-mmlu", "hotpotqa", "mmlu", "task_specific"),
    Transfer("mix_instruct-mt_bench", "mix_instruct", "mt_bench", "task_specific"),
    Transfer("mix_instruct-gsm8k", "mix_instruct", "gsm8k", "task_specific"),
    Transfer("squad-hotpotqa", "squad", "hotpotqa", "continual"),
    Transfer("query_rewriting", "query_rewriting", "query_rewriting", "continual", _HALVES),
)
TRANSFERS: dict[str, Transfer] = {transfer.name: transfer for transfer in _TRANSFERS}
"""The paper's transfers by name."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        InputError: There is no such recipe.
    """
    if name not in RECIPES:
        reason = f"{name!r} is unknown. The recipes are {', '.join(RECIPES)}."
        raise InputError(reason, field="recipe")
    return RECIPES[name]
