"""How many picks the model changed, against selections of `delift_se`."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

import delift_pipeline.selection.selector as selector_module
from delift_pipeline.kernel.block import Block
from delift_pipeline.kernel.columns import as_columns
from delift_pipeline.selection.contribution import changed_picks_sentence, coverage_embedder
from delift_pipeline.selection.options import STAGES, Stage, TrustedOptions
from delift_pipeline.selection.registry import needs_of
from delift_pipeline.selection.rules import Rules
from delift_pipeline.selection.run import CHANGED, select
from delift_pipeline.selection.selector import SelectionInputs

WORDS = "red green blue round flat sharp cold warm dry wet soft hard".split()
POOL, OLD, TARGET = (
    tuple(f"{name}{number:02d}" for number in range(count))
    for name, count in (("new", 30), ("old", 8), ("target", 3))
)
ALL = POOL + OLD
RNG = np.random.default_rng(3)
U = RNG.uniform(-0.6, 0.6, (len(ALL), len(ALL))).astype(np.float32)
NEAR = RNG.random(U.shape) < 0.4
NEAR |= NEAR.T
np.fill_diagonal(NEAR, False)


def frame(ids: tuple[str, ...]) -> pl.DataFrame:
    def words(record: str, seed: int, count: int) -> str:
        rng = np.random.default_rng([seed, *record.encode()])
        return " ".join(rng.choice(WORDS, count))

    return pl.DataFrame(
        {
            "record_id": ids,
            "instruction": [words(record, 1, 3) for record in ids],
            "input": ["" for _ in ids],
            "output": [words(record, 2, 2) for record in ids],
            "source_ids": [[record] for record in ids],
        }
    )


def inputs(stage: Stage, utilities: np.ndarray = U, pool: tuple[str, ...] = POOL) -> Any:
    own = pool + OLD if stage == "continual" else pool
    at = [ALL.index(record) for record in own]

    def block(name: str, form: str) -> Block:
        part = utilities[np.ix_(at, at)]
        if name == "neighbours":
            near = sparse.csc_matrix(np.where(NEAR[np.ix_(at, at)], part, 0))
            return Block(name, own, own, as_columns(near), "near", frozenset(POOL) - {*own})
        rows = {"target": TARGET, "self": own, "existing": own}[name]
        columns = OLD if name == "existing" else own
        size = len(rows), len(columns)
        return Block(name, rows, columns, as_columns(utilities[: size[0], : size[1]]), name)

    given = SelectionInputs(stage, frame(pool), block, target=frame(TARGET))
    if stage != "continual":
        return given
    return replace(given, existing=OLD, existing_records=frame(OLD), whole=frame(own))


def alone(stage: Stage, budget: Any, rules: Rules | None = None, **options: Any) -> set[str]:
    """The picks of `delift_se` with tf-idf."""
    found = select(inputs(stage), "delift_se", budget, 0, {"embedder": "tfidf"} | options, rules)
    return set(found.ranking)


@pytest.mark.parametrize("stage", ["instruction_tuning", "continual"])
def test_a_model_that_trusts_every_record_changes_no_pick(stage: Stage) -> None:
    found = select(inputs(stage, np.zeros_like(U)), "delift_trusted", 10, 0, {})
    assert found.trust is not None and set(found.trust.trust) == {1.0}
    assert found.details[CHANGED] == 0


def test_a_pick_that_is_not_believed_is_a_changed_pick() -> None:
    found = select(inputs("instruction_tuning"), "delift_trusted", 10, 0, {})
    assert found.details[CHANGED] == len(set(found.ranking) - alone("instruction_tuning", 10)) > 0


def test_replayed_picks_are_compared_with_coverage_of_the_existing_records() -> None:
    found = select(inputs("continual"), "delift_trusted", 10, 0, {"replay": 0.4, "nu": 0.5})
    assert found.replayed is not None and found.replayed.height == 4
    past = replace(inputs("continual"), stage="instruction_tuning", pool=frame(OLD), existing=())
    replays = set(select(past, "delift_se", 4, 0, {"embedder": "tfidf"}).ranking)
    expected = set(found.ranking) - alone("continual", 6, nu=0.5) - replays
    assert found.details[CHANGED] == len(expected)


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_picks_are_compared_with_its_objective_on_embeddings(stage: Stage) -> None:
    found = select(inputs(stage), "delift", 8, 0, {"eta": 3.0, "nu": 0.25})
    expected = alone(stage, 8, eta=3.0, nu=0.25)
    assert found.details[CHANGED] == len(set(found.ranking) - expected)


def test_coverage_alone_obeys_the_same_rules() -> None:
    rules = Rules(pin=("new29", "new28"), exclude=("new00", "new01", "new02"))
    given = inputs("instruction_tuning", np.zeros_like(U))
    assert select(given, "delift_trusted", 9, 0, {}, rules).details[CHANGED] == 0
    found = select(inputs("instruction_tuning"), "delift", 9, 0, {}, rules)
    expected = alone("instruction_tuning", 9, rules)
    assert found.details[CHANGED] == len(set(found.ranking) - expected)
    assert {"new29", "new28"} <= expected


def test_coverage_alone_has_as_many_picks_as_a_budget_auto_and_the_same_tokens() -> None:
    given = inputs("instruction_tuning", np.zeros_like(U))
    assert select(given, "delift_trusted", "auto:0.3", 0, {}).details[CHANGED] == 0
    costs = pl.Series("tokens", [5 + number % 7 for number in range(len(POOL))])
    priced = replace(given, pool=given.pool.with_columns(costs))
    found = select(priced, "delift_trusted", "60tokens", 0, {})
    assert found.ranking and found.details[CHANGED] == 0


def test_coverage_alone_chooses_among_the_records_that_could_be_ranked() -> None:
    given = inputs("instruction_tuning", np.zeros_like(U), POOL[:-5])
    whole = replace(given, pool=frame(POOL), unscorable=dict.fromkeys(POOL[-5:], "too long"))
    found = select(whole, "delift_trusted", "full", 0, {})
    assert (len(found.ranking), found.details[CHANGED]) == (len(POOL) - 5, 0)


@pytest.mark.parametrize("selector", ["random", "full", "initial", "length", "delift_se"])
def test_a_selector_without_the_model_has_no_such_number(selector: str) -> None:
    named = {"delift_se": {"embedder": "tfidf"}, "length": {"unit": "characters"}}
    options = named.get(selector, {})
    found = select(inputs("instruction_tuning"), selector, 5, 0, options)
    assert found.details[CHANGED] is None


def test_a_tokenizer_is_not_the_model_and_hidden_states_are() -> None:
    assert not needs_of("length", "instruction_tuning", {"unit": "tokens"}).reads_model
    assert needs_of("delift_se", "instruction_tuning", {"embedder": "model"}).reads_model
    assert coverage_embedder(TrustedOptions(embedder="model")) == "tfidf"
    assert coverage_embedder(TrustedOptions(embedder="minilm")) == "minilm"


def test_records_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    embed = selector_module.coverage_similarities

    def count(*given: Any) -> Any:
        calls.append(given)
        return embed(*given)

    monkeypatch.setattr(selector_module, "coverage_similarities", count)
    select(inputs("continual"), "delift_trusted", 10, 0, {})
    assert len(calls) == 1


def test_the_sentence_warns_if_the_model_changed_nothing() -> None:
    options = TrustedOptions()
    none = changed_picks_sentence(0, 90, options)
    assert none.startswith("warning: The model changed none of the 90 picks. ")
    some = changed_picks_sentence(1, 1200, TrustedOptions(embedder="minilm"))
    assert "1 of the 1,200 picks" in some and "minilm" in some and "warning" not in some
