"""From replies to scores: parsing, expected scores, the journal, and the summary."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.judge.judges import Reply, expected_score, written_score
from delift_pipeline.evaluation.judge.questions import (
    DIMENSIONS,
    JudgeOptions,
    Question,
    criterion,
    questions_for,
)
from delift_pipeline.evaluation.judge.run import Journal, ask_judge, collect_scores, estimate

WRITTEN = JudgeOptions(model="a judge")
EACH = JudgeOptions(model="a judge", mode="dimensions")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Right.\nScore: 4", 4),
        ("**Score: 5**\n", 5),
        ("well\n[RESULT] 2", 2),
        ("score: 3/5.", 3),
        ("Score: 4\nbut then again", None),
        ("Score: 6", None),
        ("Score: 4.5", None),
        ("Score: 4 or 5", None),
        ("4", None),
        ("", None),
    ],
)
def test_a_written_score_is_the_last_line_or_nothing(text: str, score: int | None) -> None:
    assert written_score(text) == score


def test_expected_scores_weigh_the_digits_by_their_probability() -> None:
    listed = [("4", math.log(0.5)), (" 4", math.log(0.1)), ("2", math.log(0.2)), ("x", -1.0)]
    score, mass = expected_score(listed, least_mass=0.5)
    assert mass == pytest.approx(0.8)
    assert score == pytest.approx((4 * 0.6 + 2 * 0.2) / 0.8)
    assert expected_score(listed, least_mass=0.9)[0] is None
    assert expected_score([("x", 0.0)], least_mass=0.0) == (None, 0.0)


def test_single_asks_once_about_all_eight_and_dimensions_asks_for_each(
    samples: pl.DataFrame,
) -> None:
    assert len(DIMENSIONS) == 8
    single, each = questions_for(samples, WRITTEN), questions_for(samples, EACH)
    assert len(single) == samples.height
    assert len(each) == 8 * samples.height
    assert all(f"- {name.replace('_', ' ')}:" in single[0].text for name in DIMENSIONS)
    assert [one.dimension for one in each[:8]] == list(DIMENSIONS)
    assert criterion("depth").count("- ") == 1
    assert "A reference answer" in each[0].text


def test_answers_that_were_not_generated_are_refused(samples: pl.DataFrame) -> None:
    bare = samples.with_columns(generated=pl.lit(None, dtype=pl.String))
    with pytest.raises(InputError, match="no generated answers to judge"):
        questions_for(bare, WRITTEN)


class Lines:
    """A judge with prepared replies that remembers what it was asked and may break off."""

    def __init__(self, replies: Sequence[Reply], most: int = 1000) -> None:
        self.prepared, self.most, self.asked = replies, most, list[Question]()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """The prepared replies in turn."""
        for place, one in enumerate(questions):
            if place == self.most:
                raise KeyboardInterrupt
            self.asked.append(one)
            yield one, self.prepared[place % len(self.prepared)]


FOUR, UNCLEAR = Reply("scored", 4, "Score: 4", 10, 3), Reply("unparsable", None, "hm", 10, 1)
FAILED = Reply("failed", None, "time-out")


def test_an_unclear_reply_is_counted_and_in_no_mean(samples: pl.DataFrame, tmp_path: Path) -> None:
    found = ask_judge(Lines([FOUR, UNCLEAR, FAILED]), questions_for(samples, WRITTEN), tmp_path)
    overall = found.overall
    assert (overall.mean, overall.scored, overall.unparsable, overall.failed) == (4.0, 1, 1, 1)
    assert overall.distribution == {"1": 0, "2": 0, "3": 0, "4": 1, "5": 0}
    assert found.rows["status"].to_list() == ["scored", "unparsable", "failed"]
    assert found.tokens == {"asked": 20, "replied": 4}


def test_a_record_counts_overall_where_all_its_dimensions_are_scored(
    samples: pl.DataFrame,
) -> None:
    questions = questions_for(samples.head(2), EACH)
    replies = {one.key: FOUR for one in questions}
    replies[questions[3].key] = UNCLEAR
    found = collect_scores(questions, replies)
    assert found.overall.scored == 1
    assert found.dimensions[questions[3].dimension].unparsable == 1
    assert sum(scores.scored for scores in found.dimensions.values()) == 15


def test_nothing_is_asked_twice_but_what_failed(samples: pl.DataFrame, tmp_path: Path) -> None:
    questions = questions_for(pl.concat([samples, samples.head(1)]), WRITTEN)
    first = Lines([FOUR, UNCLEAR, FAILED])
    ask_judge(first, questions, tmp_path)
    assert len(first.asked) == 3
    second = Lines([FOUR])
    found = ask_judge(second, questions, tmp_path)
    assert [one.key for one in second.asked] == [questions[2].key]
    assert found.overall.failed == 0


def test_a_run_that_broke_off_goes_on_with_what_is_missing(
    samples: pl.DataFrame, tmp_path: Path
) -> None:
    questions = questions_for(samples, WRITTEN)
    with pytest.raises(KeyboardInterrupt):
        ask_judge(Lines([FOUR], most=2), questions, tmp_path)
    assert estimate(questions, tmp_path, WRITTEN).known == 2
    rest = Lines([FOUR])
    assert ask_judge(rest, questions, tmp_path).overall.scored == 3
    assert len(rest.asked) == 1


def test_a_torn_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("a", FOUR)
    journal.add("b", UNCLEAR)
    torn = journal.path.read_bytes()[:-7]
    journal.path.write_bytes(torn)
    again = Journal(tmp_path)
    assert set(again.replies) == {"a"}
    again.add("c", FOUR)
    assert set(Journal(tmp_path).replies) == {"a", "c"}


def test_the_estimate_counts_distinct_questions_and_prices_them(
    samples: pl.DataFrame, tmp_path: Path
) -> None:
    options = JudgeOptions(model="a judge", scoring="expected", price_in=2.0, price_out=10.0)
    questions = questions_for(samples, options)
    found = estimate([*questions, questions[0]], tmp_path, options)
    assert (found.questions, found.requests, found.reply_tokens) == (4, 3, 3)
    assert found.price == pytest.approx((found.prompt_tokens * 2 + 3 * 10) / 1e6)
    assert found.prompt_tokens > sum(len(one.text) for one in questions) // 4


def test_options_at_odds_are_named() -> None:
    with pytest.raises(ValidationError, match="not an http or https address"):
        JudgeOptions(model="x", endpoint="ftp://host")
    with pytest.raises(ValidationError, match="password"):
        JudgeOptions(model="x", endpoint="http://me:secret@host/v1")


def test_how_requests_are_sent_does_not_name_another_judge() -> None:
    other = WRITTEN.model_copy(update={"parallel": 9, "timeout": 1.0, "price_in": 3.0})
    assert other.digest == WRITTEN.digest
    assert WRITTEN.model_copy(update={"scoring": "expected"}).digest != WRITTEN.digest
    assert EACH.digest == WRITTEN.digest
