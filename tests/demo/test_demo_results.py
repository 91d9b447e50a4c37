"""What the demo shows: its means, its table, its sentences and its legend."""

import io
import math
import re
import statistics

import pytest
from rich.console import Console

from delift_pipeline.demo.results import (
    LEGEND,
    MEASURES,
    Mean,
    PoolRow,
    StageMeans,
    print_stages,
    stages_json,
    summarise_pools,
    verdict_sentence,
)

WRONG = {"initial": None, "random": 7, "full": 24, "delift_trusted": 1}
RECORDS = {"initial": 0, "random": 48, "full": 160, "delift_trusted": 48}


def row(seed: int, selector: str, exact: float, loss: float = 1.0, wrong: int = -1) -> PoolRow:
    """One arm on one pool; `wrong` counts as usual for the selector by default."""
    is_base = selector == "initial"
    return PoolRow(
        seed=seed,
        stage="instruction_tuning",
        arm=selector if is_base else f"instruction_tuning.{selector}",
        selector=selector,
        records=RECORDS[selector],
        pool=None if is_base else 160,
        heldout=120,
        exact_match=exact,
        answer_loss=loss,
        wrong=WRONG[selector] if wrong < 0 else wrong,
        facts=None if is_base else 30,
    )


def stage(*rows: PoolRow) -> StageMeans:
    (found,) = summarise_pools(rows)
    return found


def verdict(ours: list[float], random: list[float]) -> str:
    """The sentence for exact matches pool by pool; loss, wrong answers and facts are equal."""
    rows = [row(seed, "delift_trusted", exact, wrong=3) for seed, exact in enumerate(ours)]
    rows += [row(seed, "random", exact, wrong=3) for seed, exact in enumerate(random)]
    sentence = stage(*rows).verdict
    assert sentence is not None
    return sentence


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [
        ([0.50, 0.52, 0.54], "better in"),
        ([0.30, 0.32, 0.34], "worse in"),
        ([0.30, 0.50, 0.43], "not clearly different in"),
    ],
)
def test_the_sentence_says_better_worse_or_not_resolved(ours: list[float], outcome: str) -> None:
    sentence = verdict(ours, [0.40, 0.41, 0.42])
    gaps = [one - other for one, other in zip(ours, [0.40, 0.41, 0.42], strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(3)
    numbers = f"{statistics.fmean(gaps):+.3f} ± {error:.3f}".replace("-", "−")
    part = next(part for part in sentence.split("; ") if "exact match" in part)
    assert outcome in part and f"exact match ({numbers})" in part
    assert sentence.startswith("Compared with random, delift_trusted is ")
    assert sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize(("gap", "resolved"), [(0.0199, False), (0.0201, True)])
def test_a_difference_is_resolved_beyond_two_standard_errors(gap: float, resolved: bool) -> None:
    sentence = verdict_sentence("x", {"exact_match": Mean(gap, 0.01, 5)})
    assert sentence is not None
    assert ("better in" in sentence) is resolved
    assert ("not clearly different in" in sentence) is not resolved


def test_lower_is_better_for_loss_and_wrong_answers_only() -> None:
    less = {name: Mean(-1.0, 0.1, 5) for name in MEASURES}
    sentence = verdict_sentence("x", less)
    assert sentence is not None
    better, worse = sentence.split("; ")
    assert "better in loss" in better and "wrong answers" in better
    assert "worse in exact match" in worse and "facts covered" in worse


def test_one_pool_resolves_nothing() -> None:
    sentence = verdict([0.9], [0.1])
    assert "better" not in sentence and "worse" not in sentence


def test_a_stage_without_random_or_our_selector_has_no_sentence() -> None:
    assert stage(row(1, "delift_trusted", 0.5), row(2, "delift_trusted", 0.6)).verdict is None
    assert stage(row(1, "random", 0.5), row(1, "full", 0.6)).verdict is None


def test_means_and_errors_are_over_pools_and_differences_paired_by_pool() -> None:
    # The random arm lacks the third pool, so only two differences can be paired.
    found = stage(
        *(row(seed, "delift_trusted", exact) for seed, exact in enumerate((0.5, 0.6, 0.9))),
        *(row(seed, "random", exact) for seed, exact in ((1, 0.2), (0, 0.3))),
    )
    ours = found.arms[0]
    assert ours.means["exact_match"].mean == pytest.approx(2 / 3)
    assert ours.means["exact_match"].se == pytest.approx(
        statistics.stdev([0.5, 0.6, 0.9]) / math.sqrt(3)
    )
    gap = ours.minus_random["exact_match"]
    assert (gap.mean, gap.se, gap.pools) == (pytest.approx(0.3), pytest.approx(0.1), 2)
    assert ours.minus_random["wrong"].mean == -6
    assert found.pools == 3 and not found.arms[1].minus_random


def printed(*stages: StageMeans, width: int = 80) -> str:
    file = io.StringIO()
    print_stages(stages, Console(file=file, width=width))
    return file.getvalue()


@pytest.fixture
def example() -> StageMeans:
    """All arms on three pools; the arm with the best loss has not the best exact match."""
    rows = []
    for seed in range(3):
        rows += [
            row(seed, "initial", 0.06 + seed / 100, 0.5),
            row(seed, "random", 0.40 + seed / 100, 1.2),
            row(seed, "full", 0.45 + seed / 100, 0.8),
            row(seed, "delift_trusted", 0.50, 0.9),
        ]
    return stage(*rows)


def test_the_table_has_wrong_answers_and_facts_and_is_sorted_by_exact_match(
    example: StageMeans,
) -> None:
    title, heading, *lines = printed(example).splitlines()
    assert title.startswith("instruction_tuning: 48 of 160 records chosen, 120 questions, 3 pools")
    assert heading.split() == ["arm", "exact", "loss", "wrong", "facts", "-", "random"]
    assert [line.split()[0] for line in lines[:4]] == [
        "delift_trusted",
        "full",
        "random",
        "initial",
    ]
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        *("delift_trusted", "0.50 ± 0.00", "0.90 ± 0.00", "1.0 ± 0.0", "30.0 ± 0.0"),
        "+0.09 ± 0.01",
    ]
    assert re.split(r"\s{2,}", lines[3].strip())[3:5] == ["–", "–"]
    assert example.verdict and example.verdict[:40] in lines[4]


def test_the_table_fits_a_terminal_of_80_columns(example: StageMeans) -> None:
    table = printed(example).splitlines()[:6]
    assert max(map(len, table)) <= 80
    assert not any("…" in line for line in table)


def test_the_legend_explains_each_column() -> None:
    text = " ".join(printed().split())
    assert text == " ".join(LEGEND.split())
    for heading in (*(measure.heading for measure in MEASURES.values()), "- random"):
        assert re.search(rf"^{heading}:", LEGEND, re.MULTILINE)


def test_json_has_what_the_table_shows(example: StageMeans) -> None:
    (found,) = stages_json([example])
    assert found["verdict"] == example.verdict
    assert [one["arm"] for one in found["arms"]] == [one.arm for one in example.arms]
    assert found["arms"][0]["means"]["wrong"] == {"mean": 1.0, "se": 0.0, "pools": 3}
    assert found["arms"][0]["minus_random"]["wrong"]["mean"] == -6
