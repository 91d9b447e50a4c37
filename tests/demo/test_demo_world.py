"""The demo world: deterministic, skewed, redundant, wrong in part, and disjoint in its parts."""

from collections import Counter, defaultdict

import pytest

from benchmarks.splits import make_pool_heldout, split_continual
from delift_pipeline.demo import words as w
from delift_pipeline.demo.draws import (
    Record,
    make_heldout,
    make_pool,
    make_target,
    part_of,
    prompts_of,
    task_sizes,
)
from delift_pipeline.demo.rules import MAPPED, Rule, answer
from delift_pipeline.demo.world import TASK_NAMES, make_world

SEEDS = range(300, 306)
# Either word of a concept -> the concept.
CONCEPT_OF = {word: word for word in w.CONCEPTS} | {s: first for first, s in w.SYNONYMS.items()}


def texts(record: Record) -> str:
    return f"{record['instruction']} {record['input']} {record['output']}"


@pytest.mark.parametrize(
    ("rule", "content", "expected"),
    [
        (Rule("lookup", "baki", codes={"cat": "bak"}), "cat", "bak"),
        (Rule("translate", "baki", codes={"cat": "bak", "hat": "zil"}), "hat cat", "zil bak"),
        (Rule("group", "baki", codes={"animal": "dul"}), "wolf", "dul"),
        (Rule("order", "baki", operation="rotate"), "cat hat egg", "hat egg cat"),
        (Rule("order", "baki", operation="swap"), "cat hat egg", "hat cat egg"),
        (Rule("order", "baki", operation="double"), "cat hat", "cat cat hat hat"),
        (Rule("format", "baki", marks=("(", ";", "]")), "cat hat", "( cat ; hat ]"),
        (Rule("shift", "baki", step=-3), "7", "4"),
        (
            Rule("who", "baki", style=1, ending="bak"),
            "ann has the cat . bob has the hat . who has the hat ?",
            "it is bob bak",
        ),
    ],
)
def test_a_rule_gives_the_answer_written_by_hand(rule: Rule, content: str, expected: str) -> None:
    assert answer(rule, tuple(content.split())) == expected


def test_the_same_seed_gives_the_same_world_and_pool() -> None:
    assert make_world(7) == make_world(7)
    assert make_pool(make_world(7), 200, 3) == make_pool(make_world(7), 200, 3)


def test_another_seed_gives_other_rules_and_records() -> None:
    assert make_world(7).tasks != make_world(8).tasks
    world = make_world(7)
    assert make_pool(world, 200, 3)[0] != make_pool(world, 200, 4)[0]


@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 1.0])
def test_the_share_of_wrong_answers_is_as_asked(share: float) -> None:
    records, truths = make_pool(make_world(300), 360, 300, share)
    wrong = [r["output"] != t["right_output"] for r, t in zip(records, truths, strict=True)]
    assert sum(wrong) == round(share * 360)
    assert [not truth["correct"] for truth in truths] == wrong


def test_the_share_of_wrong_answers_changes_no_prompt() -> None:
    world = make_world(300)
    clean, _ = make_pool(world, 360, 300, 0.0)
    noisy, truths = make_pool(world, 360, 300, 0.15)
    assert [r | {"output": ""} for r in clean] == [r | {"output": ""} for r in noisy]
    assert [r["output"] for r in clean] == [t["right_output"] for t in truths]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_is_skewed_redundant_and_without_repeated_prompts(seed: int) -> None:
    records, truths = make_pool(make_world(seed), 360, seed)
    tasks = Counter(record["task"] for record in records)
    facts = Counter(truth["fact"] for truth in truths)
    assert len(records) == 360 and set(tasks) == set(TASK_NAMES)
    assert max(tasks.values()) > 6 * min(tasks.values())
    assert min(facts.values()) >= 2 and max(facts.values()) >= 10
    assert len(facts) < 0.3 * len(records)
    assert len(prompts_of(records)) == 360 and len({r["id"] for r in records}) == 360


def test_a_fact_is_asked_with_both_words_of_its_concept() -> None:
    records, truths = make_pool(make_world(300), 360, 300)
    inputs: dict[str, set[str]] = defaultdict(set)
    for record, truth in zip(records, truths, strict=True):
        if truth["task"].split("-")[0] in MAPPED:
            inputs[truth["fact"]].add(record["input"])
    frequent = [words for words in inputs.values() if len(words) > 1]
    assert len(frequent) > 10
    for fact, words in inputs.items():
        asked = {" ".join(CONCEPT_OF[word] for word in text.split()) for text in words}
        assert asked == {fact.split(": ")[1]}


def test_all_tasks_share_concepts_and_codes() -> None:
    world = make_world(300)
    for task in world.tasks:
        assert set(task.rule.codes.values()) <= set(world.codes)
        if task.rule.family in {"lookup", "translate"}:
            assert set(task.rule.codes) <= set(world.concepts)
    for name in ("lookup-1", "lookup-2"):
        codes = set(world.task(name).rule.codes)
        assert codes & set(world.task("translate-1").rule.codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_pool_heldout_and_target_share_no_prompt(seed: int) -> None:
    world = make_world(seed)
    pool, truths = make_pool(world, 360, seed)
    facts = {truth["fact"] for truth in truths}
    balanced = make_heldout(world, 24, seed, facts=facts)
    distributed = make_pool_heldout(world, 240, seed, truths)
    target = make_target(world, ("lookup-1", "who-1"), 24, seed, facts=facts)
    assert Counter(r["task"] for r in balanced) == dict.fromkeys(TASK_NAMES, 24)
    assert Counter(r["task"] for r in target) == {"lookup-1": 12, "who-1": 12}
    for part, records in {"heldout": [*balanced, *distributed], "target": target}.items():
        assert not prompts_of(pool) & prompts_of(records)
        assert {part_of(r["instruction"], r["input"]) for r in records} == {part}
    assert not prompts_of(target) & prompts_of([*balanced, *distributed])


def test_a_heldout_set_asks_only_facts_that_the_pool_holds() -> None:
    world = make_world(300)
    truths = make_pool(world, 160, 300)[1]
    facts = {truth["fact"] for truth in truths}
    for record in make_heldout(world, 24, 300, facts=facts):
        if record["task"].split("-")[0] in MAPPED:
            concepts = " ".join(CONCEPT_OF[word] for word in record["input"].split())
            assert f"{record['task']}: {concepts}" in facts


def test_a_distributed_heldout_set_follows_the_pool() -> None:
    world = make_world(300)
    pool, truths = make_pool(world, 360, 300)
    share = Counter(r["task"] for r in make_pool_heldout(world, 240, 300, truths))
    wanted = Counter(r["task"] for r in pool)
    assert all(abs(share[name] / 240 - wanted[name] / 360) < 0.1 for name in TASK_NAMES)


def test_records_carry_no_ground_truth() -> None:
    records, truths = make_pool(make_world(300), 60, 300)
    fields = {"id", "instruction", "input", "output", "source", "task"}
    assert all(set(r) == fields and all(type(v) is str and v for v in r.values()) for r in records)
    assert [truth["id"] for truth in truths] == [record["id"] for record in records]


def test_a_continued_pool_repeats_no_prompt_and_no_id() -> None:
    world = make_world(300)
    first, _ = make_pool(world, 160, 300)
    more, _ = make_pool(world, 160, 301, after=first)
    assert len(prompts_of([*first, *more])) == 320
    assert len({record["id"] for record in [*first, *more]}) == 320


def test_a_continual_split_takes_half_of_five_tasks_as_existing() -> None:
    pool, _ = make_pool(make_world(300), 360, 300)
    split = split_continual(pool, 1)
    sizes = Counter(record["task"] for record in pool)
    expected = {name: sizes[name] // 2 for name in split.old_tasks}
    assert Counter(record["task"] for record in split.existing) == expected
    assert len(expected) == 5 and len(split.existing) + len(split.new) == len(pool)


@pytest.mark.parametrize("size", [20, 21, 50, 97, 160, 360, 700])
def test_task_sizes_add_up_and_leave_two_records_a_task(size: int) -> None:
    sizes = task_sizes(make_world(300).tasks, size)
    assert sum(sizes.values()) == size and min(sizes.values()) >= 2


def test_impossible_wishes_are_refused_with_a_reason() -> None:
    world = make_world(300)
    with pytest.raises(ValueError, match="too few"):
        make_pool(world, 12, 1)
    with pytest.raises(ValueError, match="wrong_share"):
        make_pool(world, 100, 1, 1.5)
    with pytest.raises(ValueError, match="is not a task"):
        make_pool(world, 100, 1, tasks=["nonsense"])
    with pytest.raises(ValueError, match="Ask for fewer"):
        make_pool(world, 20_000, 1)
