"""One row of a benchmark, in its publishers' own columns, as rows of a record's columns.

Each function takes a row and gives the records it makes: usually one, for MT-Bench one a turn. A
row in a record's own columns (`instruction` and `output`) passes through all of them unchanged.
"""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
Rows = list[dict[str, str]]

LETTERS = "ABCDEFGHIJ"
REWRITE = "Rewrite the last question so that it can be understood without the conversation."


def record(instruction: str, output: str, *, input: str = "", task: str, id: Any = "") -> Rows:
    """One record, as a list."""
    texts = {"instruction": instruction, "input": input, "output": output, "task": task}
    return [{**texts, "source_id": str(id)} if id not in ("", None) else texts]


def alpaca(row: Row) -> Rows:
    """Alpaca and MixInstruct: instruction, input, output (MixInstruct's candidates are left)."""
    return record(
        row["instruction"],
        row["output"],
        input=row.get("input") or "",
        task=row.get("task") or "alpaca",
        id=row.get("id", ""),
    )


def mix_instruct(row: Row) -> Rows:
    """MixInstruct: the reference answer; the candidates of other models are left out."""
    return alpaca({**row, "task": f"mix_instruct/{str(row.get('id', '')).partition('/')[0]}"})


def p3(row: Row) -> Rows:
    """P3: a filled template as the whole instruction."""
    return record(
        row["inputs_pretokenized"].strip(),
        row["targets_pretokenized"].strip(),
        task=f"p3/{row.get('template') or 'p3'}",
    )


def hotpotqa(row: Row) -> Rows:
    """HotpotQA: the question with its paragraphs, where there are any."""
    context = row.get("context") or {}
    titles, sentences = context.get("title", []), context.get("sentences", [])
    paragraphs = [
        f"[{i}] {title}: {''.join(parts).strip()}"
        for i, (title, parts) in enumerate(zip(titles, sentences, strict=True), start=1)
    ]
    task = f"hotpotqa/{row.get('type') or 'question'}"
    text = "\n".join(paragraphs)
    return record(row["question"], row["answer"], input=text, task=task, id=row.get("id", ""))


def mmlu(row: Row) -> Rows:
    """MMLU: the question with its lettered options; the answer is a letter."""
    subject = row["subject"].replace("_", " ")
    instruction = (
        f"The following is a multiple choice question about {subject}. Answer with the letter of "
        "the correct option."
    )
    options = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"])]
    answer = row["answer"]
    letter = LETTERS[answer] if isinstance(answer, int) else str(answer)
    text = "\n".join([row["question"], *options])
    return record(instruction, letter, input=text, task=f"mmlu/{row['subject']}")


def mt_bench(row: Row) -> Rows:
    """MT-Bench: one record a turn that has a reference answer; the second holds the first."""
    turns = list(row.get("turns") or row.get("prompt") or [])
    references = list(row.get("reference") or [])
    said: list[str] = []
    found: Rows = []
    for number, turn in enumerate(turns, start=1):
        if number > len(references) or not references[number - 1].strip():
            break
        answer = references[number - 1]
        task = f"mt_bench/{row.get('category') or 'chat'}/turn{number}"
        name = f"{row.get('question_id', row.get('prompt_id', ''))}-turn{number}"
        found += record(turn, answer, input="\n".join(said), task=task, id=name)
        said += [f"User: {turn}", f"Assistant: {answer}"]
    return found


def gsm8k(row: Row) -> Rows:
    """GSM8K: question and worked answer, whose last line is `#### number`."""
    return record(row["question"], row["answer"], task="gsm8k")


def squad(row: Row) -> Rows:
    """SQuAD: the question about a paragraph, and its first answer; none where there is none."""
    answers = list((row.get("answers") or {}).get("text", []))
    task = f"squad/{row.get('title') or 'question'}"
    if not answers:
        return []
    return record(
        row["question"], answers[0], input=row["context"], task=task, id=row.get("id", "")
    )


def query_rewriting(row: Row) -> Rows:
    """CANARD: the conversation so far, and its last question in words that need none of it."""
    topic, turns = list(row["History"])[:2], list(row["History"])[2:]
    said = [f"{'QA'[i % 2]}: {turn}" for i, turn in enumerate([*turns, row["Question"]])]
    name = f"{row.get('QuAC_dialog_id', '')}-q{row.get('Question_no', '')}"
    text = "\n".join([f"Topic: {' / '.join(topic)}", *said])
    return record(REWRITE, row["Rewrite"], input=text, task="query_rewriting/canard", id=name)


def dolly(row: Row) -> Rows:
    """Dolly: instruction, context and response."""
    task = f"dolly/{row.get('category') or 'instruction'}"
    return record(row["instruction"], row["response"], input=row.get("context") or "", task=task)
