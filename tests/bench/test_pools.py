"""Pools that are drawn from a user's records, and wrong answers that are planted in them."""

from collections import Counter

import polars as pl
import pytest

from delift_pipeline.bench.pools import draw_pool, plant_wrong_answers, split_heldout
from delift_pipeline.core.errors import InputError
from delift_pipeline.records.schema import RECORD_SCHEMA, record_id


def frame_of(rows: list[tuple[str, str, str]]) -> pl.DataFrame:
    """Records of (instruction, output, task)."""
    return pl.DataFrame(
        [
            {
                "record_id": record_id(instruction, "", output),
                "instruction": instruction,
                "input": "",
                "output": output,
                "source": "file",
                "task": task,
                "copies": 1,
                "source_ids": [str(number)],
            }
            for number, (instruction, output, task) in enumerate(rows)
        ],
        schema=RECORD_SCHEMA,
    )


@pytest.fixture
def file() -> pl.DataFrame:
    """60 records of the task a, 30 of b, 10 of c; the answers of a task differ from each other."""
    sizes = {"a": 60, "b": 30, "c": 10}
    return frame_of(
        [(f"{t} {i}", f"answer {t} {i}", t) for t, size in sizes.items() for i in range(size)]
    )


def sizes_of(pool: pl.DataFrame) -> dict[str, int]:
    return dict(Counter(pool["task"]))


def test_a_pool_is_drawn_by_its_seed_and_has_each_record_once(file: pl.DataFrame) -> None:
    pool = draw_pool(file, 40, 1)
    assert pool.height == pool["record_id"].n_unique() == 40
    assert pool.schema == RECORD_SCHEMA
    assert pool.equals(draw_pool(file, 40, 1))
    assert set(pool["record_id"]) != set(draw_pool(file, 40, 2)["record_id"])
    assert draw_pool(file, 100, 1).sort("record_id").equals(file.sort("record_id"))


def test_without_skew_each_task_keeps_its_share(file: pl.DataFrame) -> None:
    assert sizes_of(draw_pool(file, 50, 3)) == {"a": 30, "b": 15, "c": 5}


def test_with_skew_the_sizes_follow_the_rank_and_the_seed_draws_the_order() -> None:
    file = frame_of([(f"{t} {i}", f"{i}", t) for t in "abc" for i in range(60)])
    orders = set()
    for seed in range(20):
        sizes = sizes_of(draw_pool(file, 60, seed, skew=1.0))
        # 60 records in proportion to 1, 1/2, 1/3.
        assert sorted(sizes.values()) == [11, 16, 33]
        orders.add(tuple(sorted(sizes, key=lambda task: -sizes[task])))
    assert len(orders) == 6


def test_a_small_task_gives_all_it_has_and_the_others_fill_the_pool(file: pl.DataFrame) -> None:
    for seed in range(6):
        sizes = sizes_of(draw_pool(file, 80, seed, skew=0.7))
        assert sum(sizes.values()) == 80
        assert sizes["c"] <= 10 and sizes["b"] <= 30


def test_a_pool_larger_than_the_file_is_refused(file: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"--pool-size.*101 is more than the 100"):
        draw_pool(file, 101, 0)


def test_no_pool_has_the_prompt_of_a_heldout_record() -> None:
    file = frame_of([(f"ask {i // 2}", f"answer {i}", "t") for i in range(60)])
    rest, heldout = split_heldout(file, 10, seed=5)
    assert rest.height + heldout.height == 60 and heldout.height >= 10
    assert not set(rest["instruction"]) & set(heldout["instruction"])


def test_wrong_answers_are_answers_of_other_records_of_the_task(file: pl.DataFrame) -> None:
    pool, wrong = plant_wrong_answers(file, 0.15, 7)
    assert len(wrong) == 15 and wrong <= set(pool["record_id"])
    right = dict(zip(file["instruction"], file["output"], strict=True))
    answers = {task: set(group["output"]) for (task,), group in file.group_by("task")}
    for row in pool.iter_rows(named=True):
        assert row["record_id"] == record_id(row["instruction"], row["input"], row["output"])
        assert (row["output"] != right[row["instruction"]]) == (row["record_id"] in wrong)
        assert row["output"] in answers[row["task"]]
    same = [name for name in file.columns if name not in ("record_id", "output")]
    assert pool.select(same).equals(file.select(same))


def test_a_greater_share_adds_wrong_answers_to_those_of_a_smaller_one(file: pl.DataFrame) -> None:
    few, more = (plant_wrong_answers(file, share, 7)[1] for share in (0.1, 0.3))
    assert len(few) == 10 and len(more) == 30 and few < more
    clean, none = plant_wrong_answers(file, 0, 7)
    assert clean.equals(file) and not none


def test_a_planted_answer_is_never_a_right_one_in_other_writing() -> None:
    rows = [("same", "Yes"), ("same", "Maybe"), ("one", " yes "), ("two", "no"), ("three", "never")]
    file = frame_of([(prompt, answer, "t") for prompt, answer in rows])
    for seed in range(30):
        pool, wrong = plant_wrong_answers(file, 1.0, seed)
        assert len(wrong) == 5 == pool["record_id"].n_unique()
        plain = [answer.strip().lower() for answer in pool["output"]]
        assert set(plain[:2]) == {"no", "never"}
        assert plain[2] != "yes" and plain[3] != "no" and plain[4] != "never"


def test_a_share_that_cannot_be_planted_is_refused() -> None:
    file = frame_of([(f"ask {i}", "yes" if i else "no", "ab"[i > 1]) for i in range(10)])
    assert len(plant_wrong_answers(file, 0.2, 0)[1]) == 2
    with pytest.raises(InputError, match="only 2 have another"):
        plant_wrong_answers(file, 0.3, 0)
    with pytest.raises(InputError, match="not within 0 and 1"):
        plant_wrong_answers(file, 1.5, 0)
