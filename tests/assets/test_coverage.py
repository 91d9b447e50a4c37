"""Sparse plans: what arms can do with neighbours, and what they refuse."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from delift_pipeline.core.home import Home

ARM = "instruction_tuning.delift"
SPARSE = "plan: {coverage: neighbours, neighbours: 4}\n"


@pytest.fixture
def sparse(ingested: Home, copied: Callable) -> Any:
    """A world whose plan holds near pairs only; nothing is scored."""
    made = copied(ingested)
    made.write_arms(SPARSE + made.home.arms_file.read_text())
    return made


def test_coverage_neighbours_plans_near_pairs_only(sparse: Any) -> None:
    result = sparse.succeed("score_version", "v1")
    plan = result.facts("pair_plan")
    assert plan["coverage"] == "neighbours"
    assert plan["pairs"] < 24 * 24
    whys = [row["why"] for row in plan["arms whose pairs are not planned"]]
    assert [why.split()[0] for why in whys] == [ARM, "task_specific.delift"]
    assert all("coverage is neighbours" in why for why in whys)


def test_an_arm_that_needs_every_pair_refuses_with_the_cost(sparse: Any) -> None:
    result = sparse.succeed("score_version", "v1")
    planned = {row["block"]: row["pairs"] for row in result.facts("pair_plan")["blocks"]}["self"]
    said = sparse.execute("finetune_arm", "v1", ARM).failure
    found = re.search(r"needs ([\d,]+) more pairs, about .+ here", said)
    assert found is not None, said
    assert int(found[1].replace(",", "")) == 24 * 24 - planned


def test_a_random_arm_runs_on_a_sparse_plan(sparse: Any) -> None:
    sparse.succeed("score_version", "v1")
    sparse.succeed("finetune_arm", "v1", "instruction_tuning.random")


def test_an_arm_of_near_pairs_runs_on_a_sparse_plan(sparse: Any) -> None:
    text = sparse.home.arms_file.read_text()
    sparse.write_arms(text.replace(f"{ARM}: {{}}", f"{ARM}: {{options: {{pairs: neighbours}}}}"))
    sparse.succeed("score_version", "v1")
    result = sparse.succeed("finetune_arm", "v1", ARM)
    subset = result.facts("subset")
    assert subset["selected"] == 7
    assert subset["value"] > 0


def test_setting_coverage_all_afterwards_scores_what_is_missing(sparse: Any) -> None:
    first = sparse.succeed("score_version", "v1").facts("in_context_logprobs")
    text = sparse.home.arms_file.read_text()
    sparse.write_arms(text.replace("coverage: neighbours", "coverage: all"))
    second = sparse.succeed("score_version", "v1").facts("in_context_logprobs")
    assert second["pairs_scored"] + first["pairs_scored"] == second["wanted"]
    assert second["pairs_reused"] == first["pairs_scored"]
    sparse.succeed("finetune_arm", "v1", ARM)


def test_a_pool_above_the_dense_limit_falls_back_to_neighbours(
    ingested: Home, copied: Callable
) -> None:
    made = copied(ingested)
    made.write_arms("plan: {dense_limit: 23, neighbours: 4}\n" + made.home.arms_file.read_text())
    result = made.succeed("score_version", "v1")
    assert result.facts("pair_plan")["coverage"] == "neighbours"
    assert "more pairs" in made.execute("finetune_arm", "v1", ARM).failure
