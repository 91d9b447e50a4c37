"""A person opens the graph, launches an arm, sees it succeed, follows it to MLflow, compares."""

import re
from contextlib import suppress
from typing import Any

import pytest

# As in the home of conftest.py.
VERSION, FIRST, SECOND = "v1", "instruction_tuning.random", "instruction_tuning.delift"
GROUPS = ("ingest", "scoring", "selection", "training", "evaluation")
ASSETS = {
    "raw_dataset": "ingest",
    "pair_plan": "scoring",
    "baseline_logprobs": "scoring",
    "in_context_logprobs": "scoring",
    "utility_kernel": "selection",
    "subset": "selection",
    "adapter": "training",
    "eval_report": "evaluation",
    "leaderboard": "evaluation",
}

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def launched(desk: Any) -> str:
    """The address of a run of one version's arm that was launched from the launchpad."""
    from playwright.sync_api import expect

    page = desk.page
    page.goto(f"{desk.dagster}/jobs")
    page.get_by_role("link", name="finetune_arm").first.click()
    page.wait_for_url("**/jobs/finetune_arm**")
    page.goto(page.url.split("?")[0].rstrip("/") + "/playground")
    box = page.get_by_placeholder("Partition")
    box.click()
    box.fill(f"{SECOND}|{VERSION}")
    page.get_by_text(f"{SECOND}|{VERSION}", exact=True).last.click()
    expect(box).to_have_value(f"{SECOND}|{VERSION}")
    expect(page.get_by_text("No errors")).to_be_visible()
    desk.picture("launchpad")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    return page.url


@pytest.fixture(scope="module")
def finished(desk: Any, launched: str) -> str:
    """The same run once it has ended."""
    page = desk.page
    page.goto(launched)
    ended = page.get_by_text(re.compile(r"^(Success|Failure|Canceled)$")).first
    ended.wait_for(timeout=3 * 120_000)
    return ended.inner_text()


def expand(page: Any) -> None:
    """Open all groups, once the graph listens to its keys."""
    from playwright.sync_api import TimeoutError as Late

    for _ in range(6):
        page.keyboard.press("Alt+e")
        with suppress(Late):
            page.get_by_text("raw_dataset", exact=True).first.wait_for(timeout=20_000)
            return


def test_the_graph_shows_the_method_in_five_groups(desk: Any) -> None:
    from playwright.sync_api import expect

    page = desk.page
    page.goto(f"{desk.dagster}/asset-groups")
    for group in GROUPS:
        expect(page.locator(f"[data-tooltip='{group}']").first).to_be_visible()
    expand(page)
    for asset in ASSETS:
        # A long name may be cut in the middle.
        shown = re.compile(rf"^({asset}|{asset[:3]}\w*…\w*{asset[-3:]})$")
        expect(page.get_by_text(shown).first).to_be_visible()
    desk.picture("graph")


def test_an_asset_shows_columns_owner_kinds_freshness_and_code(desk: Any) -> None:
    from playwright.sync_api import expect

    page = desk.page
    page.goto(f"{desk.dagster}/assets/adapter?view=overview")
    for shown in (
        "The adapter (or whole model) that fine-tuning on an arm's subset produced.",
        "the adapter that was trained on it: this or an earlier one",
        "Hugging Face",
        "delift",
        "Freshness policy",
    ):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible()
    expect(page.get_by_text("the step (make_adapter)").first).to_be_visible()
    desk.picture("asset")


def test_an_arm_launched_from_the_launchpad_succeeds(desk: Any, finished: str) -> None:
    from playwright.sync_api import expect

    assert finished == "Success"
    for asset in ("subset", "adapter", "eval_report"):
        expect(desk.page.get_by_text(asset, exact=True).first).to_be_visible()
    desk.picture("run")


def test_the_subsets_plot_is_seen(desk: Any, finished: str) -> None:
    page = desk.page
    page.goto(f"{desk.dagster}/assets/subset?view=partitions&partition={SECOND}%7C{VERSION}")
    row = page.locator("tr", has=page.get_by_text("gains", exact=True))
    row.get_by_text("Show Markdown").click()
    plot = page.get_by_role("img", name="gains")
    plot.wait_for()
    assert plot.evaluate("image => image.complete && image.naturalWidth") > 100
    desk.picture("plot")


@pytest.fixture(scope="module")
def linked(desk: Any, finished: str) -> str:
    """The address behind `MLflow` in the adapter's metadata."""
    page = desk.page
    page.goto(f"{desk.dagster}/assets/adapter?view=partitions&partition={SECOND}%7C{VERSION}")
    named = page.locator("tr", has=page.get_by_text("MLflow", exact=True))
    return named.get_by_role("link").first.get_attribute("href")


def test_the_mlflow_link_leads_to_the_run_and_back(desk: Any, launched: str, linked: str) -> None:
    from playwright.sync_api import expect

    page = desk.page
    assert linked.startswith(f"{desk.mlflow}/#/experiments/")
    page.goto(linked)
    expect(page.get_by_text(f"{VERSION} {SECOND}").first).to_be_visible()
    expect(page.get_by_text("answer_loss").first).to_be_visible()
    back = page.get_by_role("link", name="Dagster run").first
    assert back.get_attribute("href") == launched.split("?")[0]
    desk.picture("mlflow_run")


def test_two_runs_are_compared(desk: Any, linked: str) -> None:
    from playwright.sync_api import expect

    page = desk.page
    page.goto(linked.rsplit("/", 1)[0])
    rows = page.get_by_role("row")
    above = rows.filter(has=page.get_by_text(VERSION, exact=True)).first
    above.get_by_role("button").first.click()
    for arm in (FIRST, SECOND):
        row = rows.filter(has=page.get_by_text(f"{VERSION} {arm}", exact=True)).first
        number = row.get_attribute("row-index")
        page.locator(f"[row-index='{number}']").get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare-runs**")
    for shown in (f"{VERSION} {FIRST}", f"{VERSION} {SECOND}", "answer_loss"):
        expect(page.get_by_text(shown).first).to_be_visible()
    desk.picture("compare")


def test_the_registered_adapter_shows_its_card(desk: Any, finished: str) -> None:
    from playwright.sync_api import expect

    page = desk.page
    page.goto(f"{desk.dagster}/assets/adapter?view=partitions&partition={SECOND}%7C{VERSION}")
    named = page.locator("tr", has=page.get_by_text("MLflow model", exact=True))
    address = named.get_by_role("link").first.get_attribute("href")
    assert address.endswith("/#/models/delift-demo-instruction_tuning-on-demo/versions/2")
    page.goto(address)
    expect(page.get_by_text("What it is made of").first).to_be_visible()
    expect(page.get_by_text(f"{VERSION} {SECOND}").first).to_be_visible()
    desk.picture("registry")
