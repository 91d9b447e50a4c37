"""The exact tokens: plain text, segments on their own, caps that ignore the partner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import PreTrainedTokenizerFast

from delift_pipeline.core.errors import InputError
from delift_pipeline.prompts.encode import Encoder
from delift_pipeline.prompts.render import render
from delift_pipeline.prompts.template import load_template, shipped_templates
from tools.demo_model.tokenizer import build_tokenizer

NASTY = "a </s> dog <s> plays <|im_end|> with <tool_call> the <|endoftext|> ball"


def record(instruction: str, output: str, text: str = "", name: str = "a") -> dict[str, str]:
    return {
        "record_id": name * 32,
        "instruction": instruction,
        "input": text,
        "output": output,
    }


def frame(*records: Mapping[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([dict(r) for r in records])


def encoder(tokenizer: Any, template: str = "plain", window: int = 512) -> Encoder:
    return Encoder(tokenizer, load_template(template), window)


def test_no_text_ever_becomes_a_special_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token_id is not None
    asked = record(NASTY, NASTY, NASTY)
    rendered = render(encoder(tokenizer, window=2048), asked, asked)
    unknown, end = tokenizer.unk_token_id, tokenizer.eos_token_id
    markers = [
        token for token in tokenizer.added_tokens_decoder if token == end or token != unknown
    ]
    inner = rendered.token_ids[tokenizer.bos_token_id is not None : -1]
    assert set(markers).isdisjoint(inner)
    assert rendered.token_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [n for n in shipped_templates() if n != "chat"])
def test_with_and_without_differ_only_by_the_demonstration(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    coder = encoder(tokenizer, template, 2048)
    target, shown = record("say a dog", "a ball", "red"), record("how many", "3", name="b")
    alone, after = render(coder, target), render(coder, target, shown)
    tail = alone.token_ids[len(coder.head) :]
    assert after.token_ids[-len(tail) :] == tail
    assert after.token_ids[: len(coder.start)] == coder.start
    answers = [after.token_ids[i] for i in after.answer_positions]
    assert answers == [alone.token_ids[i] for i in alone.answer_positions]
    assert after.text.endswith(alone.text.removeprefix(before(coder)))


def before(coder: Encoder) -> str:
    bos = str(coder.tokenizer.decode(coder.bos)) if coder.bos else ""
    return bos + coder.template.alone


def test_a_segment_is_tokenised_as_written_without_an_added_blank(
    byte_fallback_tokenizer: PreTrainedTokenizerFast,
) -> None:
    coder = encoder(byte_fallback_tokenizer)
    target, shown = record("say a dog", "a ball", "red"), record("how many", "3", name="b")
    rendered = render(coder, target, shown)
    assert byte_fallback_tokenizer.decode(rendered.token_ids) == rendered.text
    assert rendered.text == (
        "<s>Task: how many\nAnswer: 3\n\nTask: say a dog\nred\nAnswer: a ball</s>"
    )


def test_what_is_rendered_is_what_is_encoded(tokenizer: PreTrainedTokenizerFast) -> None:
    coder = encoder(tokenizer)
    records = [record("say a dog", "a ball", "red"), record("how many", "3 balls", name="b")]
    encoded = coder.encode(frame(*records))
    assert encoded.ids == ("a" * 32, "b" * 32)
    for i, target in enumerate(records):
        for j, shown in ((None, None), *enumerate(records)):
            prefix = encoded.prefix() if j is None else encoded.prefix(j)
            rendered = render(coder, target, *([shown] if shown else []))
            whole = np.concatenate([prefix, encoded.prompt(i), encoded.answer(i)])
            assert rendered.token_ids == whole.tolist()
            first = len(whole) - len(encoded.answer(i))
            assert rendered.answer_positions == list(range(first, len(whole)))
            assert len(rendered.answer_positions) == encoded.answer_lengths[i]


def test_several_demonstrations_follow_one_another(tokenizer: PreTrainedTokenizerFast) -> None:
    coder = encoder(tokenizer, "paper", 1024)
    encoded = coder.encode(frame(record("say", "a"), record("how", "3", name="b")))
    both = [*coder.start, *encoded.demonstration(1), *encoded.demonstration(0)]
    assert encoded.prefix(1, 0).tolist() == both


def test_the_demo_world_closes_a_demonstration_with_the_end_token() -> None:
    tokenizer = build_tokenizer()
    coder = encoder(tokenizer, "world")
    target, shown = record("give the", "red", "dog"), record("give", "the cat", name="b")
    rendered = render(coder, target, shown)
    assert tokenizer.convert_ids_to_tokens(rendered.token_ids) == (
        "<s> Task: give Answer: the cat </s> Task: give the dog Answer: red </s>".split()
    )


def words(count: int, word: str) -> str:
    return " ".join([word] * count)


def decoded(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids))


def test_a_long_target_loses_the_middle_of_its_input_first(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    coder = encoder(byte_level_tokenizer, window=128)
    text = f"red {words(60, 'dog')} ball"
    encoded = coder.encode(frame(record("say a dog", "a ball", text)))
    prompt = decoded(byte_level_tokenizer, encoded.prompt(0))
    assert len(encoded.prompt(0)) + len(encoded.answer(0)) == 64 == coder.target_cap
    assert prompt.startswith("Task: say a dog\nred dog") and prompt.endswith(" ball\nAnswer:")
    assert decoded(byte_level_tokenizer, encoded.answer(0)) == " a ball<|endoftext|>"
    assert encoded.cuts["target_input"] == 1 and "target_instruction" not in encoded.cuts
    shown = render(coder, record("say a dog", "a ball", text)).text
    assert shown == f"<|endoftext|>{prompt} a ball<|endoftext|>"


def test_then_the_instruction_is_cut_and_never_the_answer(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    coder = encoder(byte_level_tokenizer, window=128)
    answer = words(20, "a")
    encoded = coder.encode(frame(record(f"say {words(50, 'dog')} now", answer, words(50, "red"))))
    assert encoded.cuts["target_input"] == encoded.cuts["target_instruction"] == 1
    assert len(encoded.prompt(0)) + len(encoded.answer(0)) == 64
    prompt = decoded(byte_level_tokenizer, encoded.prompt(0))
    assert prompt.startswith("Task: say dog") and "now" in prompt
    assert decoded(byte_level_tokenizer, encoded.answer(0)) == f" {answer}<|endoftext|>"


def test_an_answer_that_does_not_fit_makes_the_record_unscorable_with_a_reason(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    coder = encoder(byte_level_tokenizer, window=128)
    long, short = record("say", words(64, "a")), record("say", "a", name="b")
    encoded = coder.encode(frame(long, short))
    assert encoded.ids == ("b" * 32,)
    assert "answer takes" in encoded.unscorable["a" * 32]
    with pytest.raises(InputError, match="answer takes"):
        render(coder, long)


def test_a_demonstration_is_cut_in_the_middle_of_its_prompt_then_at_the_end_of_its_answer(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    coder = encoder(byte_level_tokenizer, window=128)
    prompt_only = record(f"say {words(70, 'dog')} now", "a ball")
    both = record(words(30, "dog"), f"a {words(53, 'red')}", words(30, "ball"), name="b")
    encoded = coder.encode(frame(prompt_only, both))
    first, second = (decoded(byte_level_tokenizer, encoded.demonstration(row)) for row in (0, 1))
    for row in (0, 1):
        assert len(encoded.prefix(row)) == 64
    assert first.startswith("Task: say dog") and first.endswith(" now\nAnswer: a ball\n\n")
    assert second.startswith("Task:") and second.endswith(" red\n\n")
    assert encoded.cuts["demonstration_prompt"] == 2
    assert encoded.cuts["demonstration_answer"] == 1


def test_no_cap_depends_on_the_partner_and_every_pair_fits_the_window(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rng = np.random.default_rng(0)
    coder = encoder(byte_level_tokenizer, window=96)
    records = [
        {
            "record_id": f"{place:032x}",
            "instruction": words(int(rng.integers(1, 60)), "dog"),
            "input": words(int(rng.integers(0, 60)), "red"),
            "output": words(int(rng.integers(1, 60)), "ball"),
        }
        for place in range(60)
    ]
    encoded = coder.encode(frame(*records))
    assert encoded.unscorable and encoded.cuts
    for row, name in enumerate(encoded.ids):
        target = len(encoded.prompt(row)) + len(encoded.answer(row))
        assert target <= coder.target_cap
        assert len(encoded.prefix(row)) <= 48
        alone = coder.encode(frame(records[int(name, 16)]))
        np.testing.assert_array_equal(alone.prompt(0), encoded.prompt(row))
        np.testing.assert_array_equal(alone.demonstration(0), encoded.demonstration(row))


def test_an_empty_frame_encodes_to_nothing(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encoder(byte_level_tokenizer).encode(frame(record("a", "b"))[:0])
    assert len(encoded) == 0 and len(encoded.answer_lengths) == 0


def test_a_tokenizer_without_an_end_or_a_window_without_room_is_refused(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(InputError, match="too small"):
        encoder(byte_level_tokenizer, "paper", 64)
    byte_level_tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-text"):
        encoder(byte_level_tokenizer)


@pytest.mark.data
def test_the_real_tokenizer_gives_back_the_text(stories: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    asked = record(NASTY, "naïve 日本 </s> <0x0A>", "line\n\n two")
    rendered = render(encoder(tokenizer), asked, record("é", "ü", name="b"))
    assert str(tokenizer.decode(rendered.token_ids)) == rendered.text
    assert rendered.token_ids.count(tokenizer.eos_token_id) == 1


def test_unknown_words_stay_scorable_where_a_model_pads_with_the_token_for_them(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    word_tokenizer.pad_token = word_tokenizer.unk_token
    encoded = encoder(word_tokenizer).encode(frame(record("say zebra", "a zebra")))
    assert encoded.unscorable == {}
