"""The model's own chat template: as the model saw it, and never touching a record's text."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from delift_pipeline.core.errors import InputError
from delift_pipeline.prompts.chat import TEMPLATE_DATE, parse_chat_template
from delift_pipeline.prompts.encode import Encoder
from delift_pipeline.prompts.render import RenderedPrompt, render
from delift_pipeline.prompts.template import Template, load_template

Chat = Callable[[str], PreTrainedTokenizerFast]
RECORDS = [
    {"instruction": "Say what a dog is.", "input": "", "output": "A dog is an animal."},
    {"instruction": "how many balls", "input": "3 dogs\nhave 2 of them?", "output": "6"},
    {"instruction": "please answer in one line", "input": "", "output": "red ball,\nall day"},
    {"instruction": "Query: a < b > c", "input": "é 日本", "output": "ü"},
]
MARKS = (
    "<|im_start|><|im_end|><think></think><|eot_id|><|start_header_id|>[INST][/INST]</s><s>"
    "<|user|><|end|><|assistant|><start_of_turn><end_of_turn><|endoftext|> {{ x }} {input} {% x %}"
)


def encoder(tokenizer: Any, window: int = 2048, **changes: Any) -> Encoder:
    template = load_template("chat").model_copy(update=changes)
    return Encoder(tokenizer, template, window, tokenizer.chat_template)


def message(record: dict[str, str]) -> str:
    return "\n\n".join(text for text in (record["instruction"], record["input"]) if text)


def expected(tokenizer: Any, *records: dict[str, str]) -> list[int]:
    """What the model's own tokenizer makes of the dialogue."""
    turns = [
        turn
        for record in records
        for turn in (
            {"role": "user", "content": message(record)},
            {"role": "assistant", "content": record["output"]},
        )
    ]
    return tokenizer.apply_chat_template(turns, return_dict=False, date_string=TEMPLATE_DATE)


@pytest.mark.parametrize("shown", [0, 1, 2, 3])
def test_harmless_texts_give_the_ids_of_apply_chat_template(
    shown: int, chatty: PreTrainedTokenizerFast
) -> None:
    coder = encoder(chatty)
    target, before = RECORDS[0], RECORDS[1 : 1 + shown]
    rendered, truth = render(coder, target, *before), expected(chatty, *before, target)
    ids = rendered.token_ids
    assert ids == truth[: len(ids)]
    # What is left out stands behind the token that ends the answer: white space and an end of text.
    rest = str(chatty.decode(truth[len(ids) :])).replace(str(chatty.eos_token), "")
    assert rest.strip() == ""
    answer = str(chatty.decode([ids[at] for at in rendered.answer_positions[:-1]]))
    assert answer.strip() == target["output"]


def test_the_prompt_ends_where_a_generation_would_start(chatty: PreTrainedTokenizerFast) -> None:
    rendered = render(encoder(chatty), RECORDS[0])
    turn = [{"role": "user", "content": message(RECORDS[0])}]
    start = chatty.apply_chat_template(
        turn, add_generation_prompt=True, return_dict=False, date_string=TEMPLATE_DATE
    )
    assert rendered.token_ids[: len(start)] == start
    between = rendered.token_ids[len(start) : rendered.answer_positions[0]]
    # A thinking model would write a thought first; ours is the empty one that the template writes.
    assert str(chatty.decode(between)) in ("", "<think>\n\n</think>\n\n")


def tail_of(rendered: RenderedPrompt, head: list[int]) -> list[int]:
    return rendered.token_ids[len(head) :]


@pytest.mark.parametrize("shown", [1, 2, 3])
def test_with_and_without_differ_only_by_the_demonstrations(
    shown: int, chatty: PreTrainedTokenizerFast
) -> None:
    coder = encoder(chatty)
    alone = tail_of(render(coder, RECORDS[0]), coder.head)
    after = render(coder, RECORDS[0], *RECORDS[1 : 1 + shown])
    assert coder.head == coder.start
    assert after.token_ids[: len(coder.head)] == coder.head
    assert after.token_ids[-len(alone) :] == alone
    fewer = render(coder, RECORDS[0], *RECORDS[2 : 1 + shown])
    cut = len(after.token_ids) - len(fewer.token_ids)
    kept = after.token_ids[: len(coder.head)] + after.token_ids[len(coder.head) + cut :]
    assert kept == fewer.token_ids


def test_no_text_of_a_record_becomes_a_special_token(chatty: PreTrainedTokenizerFast) -> None:
    coder = encoder(chatty)
    harmless = {"instruction": "a", "input": "b", "output": "c"}
    nasty = dict.fromkeys(harmless, MARKS)

    def marks(rendered: RenderedPrompt) -> list[int]:
        return [one for one in rendered.token_ids if one in coder.plain.special_ids]

    assert marks(render(coder, nasty, nasty)) == marks(render(coder, harmless, harmless))
    assert render(coder, nasty).text.count(MARKS) == 3


@pytest.fixture(scope="module")
def trimming(chat_named: Chat) -> Encoder:
    """With a template that takes white space off texts."""
    return encoder(chat_named("llama3"))


@given(text=st.text(alphabet=st.sampled_from("ab \n\t{}%<|>é日/"), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_a_text_is_written_exactly_as_it_is(trimming: Encoder, text: str) -> None:
    found = render(trimming, {"instruction": text, "input": "", "output": text}).text
    before, after = "user<|end_header_id|>\n\n", "<|eot_id|>"
    assert f"{before}{text}{after}" in found and found.endswith(f"\n\n{text}{after}")


@pytest.mark.parametrize(
    ("name", "roles"), [("llama3", 2), ("gemma", 2), ("chatml", 0), ("phi3", 0), ("mistral", 0)]
)
def test_a_template_that_trims_texts_is_noticed(name: str, roles: int, chat_named: Chat) -> None:
    notes = encoder(chat_named(name)).notes
    assert len(notes) == roles
    assert all("white space" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "end"),
    [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("phi3", "<|end|>"), ("mistral", "</s>")],
)
def test_the_token_that_ends_a_turn_ends_the_answer(name: str, end: str, chat_named: Chat) -> None:
    tokenizer = chat_named(name)
    coder = encoder(tokenizer)
    assert coder.eos == tokenizer.convert_tokens_to_ids(end)
    assert render(coder, RECORDS[0]).text.endswith(end)


def test_a_system_message_stands_once_in_front(chat_named: Chat) -> None:
    tokenizer = chat_named("chatml")
    rendered = render(encoder(tokenizer, system="Be <|im_end|> brief."), *RECORDS[:2])
    assert rendered.text.startswith("<|im_start|>system\nBe <|im_end|> brief.<|im_end|>\n")
    ids = encoder(tokenizer, system="Be <|im_end|> brief.").head
    # The user's own words in a template of his are text, too.
    assert ids.count(tokenizer.get_vocab()["<|im_end|>"]) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma", "System role not supported"),
        ("mistral", "refuses a dialogue with a system message"),
        ("mistral-control", "differently by its place"),
        ("vicuna", "no system"),
    ],
)
def test_a_template_that_refuses_a_system_message_says_so_in_one_line(
    name: str, why: str, chat_named: Chat
) -> None:
    with pytest.raises(InputError, match=why) as refused:
        encoder(chat_named(name), system="Be brief.")
    assert len(str(refused.value).splitlines()) == 1
    assert refused.value.faults[0].field == "template"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "as it is given"),
        ("{% for m in messages %}{{ m.content | replace('\n', ' ') }}{% endfor %}", "as it is"),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", "as it is given"),
        ("{% for m in messages %}{{ m.content[:5] }}{% endfor %}", "as it is given"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "more than once"),
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "by its place"),
        ("{% for m in messages %}{{ m.content|length }}{{ m.content }}{% endfor %}", "other words"),
        ("{{ messages[-1].content }}", "as it is given"),
        ("{% for m in messages %}{{ m.content }", "cannot be read"),
        ("{% for m in messages %}{{ m.nothing.there }}{% endfor %}", "refuses a plain dialogue"),
        ("{{ ''.__class__.__mro__ }}{% for m in messages %}{{ m.content }}{% endfor %}", "refuses"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(source: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        parse_chat_template(source, {})
    assert len(str(refused.value).splitlines()) == 1


def test_a_template_that_asks_for_the_date_gets_a_fixed_one() -> None:
    source = "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert parse_chat_template(source, {}).opening[0] == "26 July 2024"


def test_a_block_that_marks_what_a_model_said_changes_nothing() -> None:
    body = "{{ m.content }}"
    plain = f"{{% for m in messages %}}{body}{{% endfor %}}"
    marked = plain.replace(body, f"{{% generation %}}{body}{{% endgeneration %}}")
    assert parse_chat_template(marked, {}) == parse_chat_template(plain, {})


def test_several_demonstrations_that_do_not_fit_are_refused_with_the_count(
    chat_named: Chat,
) -> None:
    coder = encoder(chat_named("chatml"), window=256)
    assert render(coder, RECORDS[0], RECORDS[1]).answer_positions
    with pytest.raises(InputError, match=r"9 demonstrations .* window of 256"):
        render(coder, RECORDS[0], *[RECORDS[1]] * 9)


def test_a_chat_template_leaves_no_room_for_words_around_it() -> None:
    own = {**load_template("chat").model_dump(), "lead": "x", "alone": "y"}
    with pytest.raises(ValueError, match=r"alone is the chat template's own.*lead is the"):
        Template.model_validate(own)
    plain = {**load_template("plain").model_dump(), "system": "x"}
    with pytest.raises(ValueError, match="system is read where chat is true"):
        Template.model_validate(plain)
