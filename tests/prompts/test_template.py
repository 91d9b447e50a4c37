"""Templates are data: shipped ones load, faulty ones are refused whole."""

from pathlib import Path

import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.prompts.template import (
    Template,
    WrittenText,
    load_template,
    parse_pieces,
    shipped_templates,
    write,
)


def composed(pieces: tuple[str, ...], record: dict[str, str]) -> WrittenText:
    return write(parse_pieces(pieces), record)


RECORD = {"instruction": "Name {input} animals.", "input": "two\nof {them}", "output": "cat {0}"}


def test_the_shipped_templates_are_chat_paper_plain_and_world() -> None:
    assert shipped_templates() == ["chat", "paper", "plain", "world"]
    digests = {load_template(name).digest for name in shipped_templates()}
    assert len(digests) == 4


def test_plain_writes_task_input_answer_on_lines_of_their_own() -> None:
    plain = load_template("plain")
    assert composed(plain.prompt, RECORD).text == (
        "Task: Name {input} animals.\ntwo\nof {them}\nAnswer:"
    )
    assert composed(plain.answer, RECORD).text == " cat {0}"
    assert plain.demonstration.close == "\n\n"


@pytest.mark.parametrize("name", ["plain", "paper", "world"])
def test_an_empty_input_leaves_out_its_line(name: str) -> None:
    template = load_template(name)
    written = composed(template.prompt, RECORD)
    full, spans = written.text, written.spans
    written = composed(template.prompt, {**RECORD, "input": ""})
    short = written.text
    assert "input" not in written.spans
    assert RECORD["input"] in full and "\n\nAnswer" not in short and "Input" not in short
    start, stop = spans["input"]
    assert full[start:stop] == RECORD["input"]
    start, stop = spans["instruction"]
    assert full[start:stop] == RECORD["instruction"]


def test_paper_has_the_papers_words_with_the_same_white_space_on_both_sides() -> None:
    paper = load_template("paper")
    assert paper.alone == "Instruction:\nPlease generate a response to the following query.\n\n\n"
    assert paper.lead == (
        "Instruction:\nUse the following example as a guide to answer the query in the same format "
        "and style, providing a clear and concise response.\n\n\n"
    )
    assert composed(paper.prompt, RECORD).text.startswith("Query:\nInstruction: Name")


def test_every_fault_of_a_template_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: Mine!\nprompt: ['{instruction}']\nanswer: ['{outptu}']\nextra: 1\n")
    with pytest.raises(InputError) as refused:
        load_template(str(path))
    fields = {fault.field for fault in refused.value.faults}
    assert fields == {"name", "version", "extra"}
    path.write_text("name: mine\nversion: 1\nprompt: ['{instruction}']\nanswer: ['{outptu}']\n")
    with pytest.raises(InputError, match=r"\{input\}.*\{output\}"):
        load_template(str(path))


@pytest.mark.parametrize("name", ["nonesuch", "no/such.yaml"])
def test_a_template_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="plain") as refused:
        load_template(name)
    assert len(str(refused.value).splitlines()) == 1


def test_a_template_of_ones_own_can_be_written_and_its_digest_follows_the_wording(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nversion: 1\nprompt: ['Q: {instruction}', ' {input}']\nanswer: ['{output}']\n"
    )
    mine = load_template(str(path))
    assert mine.digest == load_template(str(path)).digest
    changed = Template.model_validate({**mine.model_dump(), "answer": (" {output}",)})
    assert changed.digest != mine.digest
