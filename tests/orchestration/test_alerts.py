"""Alerts: logged always, posted where asked for, and never in anybody's way."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import dagster as dg
import pytest

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.home import Home
from delift_pipeline.core.validation import check_webhook
from delift_pipeline.orchestration.jobs import score_job
from delift_pipeline.orchestration.partitions import dataset_version
from delift_pipeline.orchestration.sensors import (
    WEBHOOK_VARIABLE,
    Alert,
    failed_run_alerts,
    send_alert,
)
from resources import StoreResource

ALERT = Alert("score_version", "0123", "out of memory", version="v1", step="pair_plan")


class Hook(HTTPServer):
    """A webhook on loopback: what it was sent, and what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/secret"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "file:///etc/hostname")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def logged(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home.root / "alerts.jsonl").read_text().splitlines()]


def test_an_alert_is_one_line_of_json_and_one_post(home: Home, hook: Hook) -> None:
    assert send_alert(home, ALERT, hook.url) is None
    (line,) = logged(home)
    assert hook.bodies == [line]
    assert (line["version"], line["step"], line["reason"]) == ("v1", "pair_plan", "out of memory")
    assert line["text"] == "delift: score_version of v1 failed, step pair_plan: out of memory"


def test_the_environment_names_the_webhook_before_arms_yaml(
    home: Home, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    assert send_alert(home, ALERT, "http://127.0.0.1:9/nobody") is None
    assert len(hook.bodies) == 1


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_fails_nothing_and_its_address_is_not_told(
    home: Home, hook: Hook, status: int
) -> None:
    hook.status = status
    why = send_alert(home, ALERT, hook.url)
    assert why is not None and "127.0.0.1" in why and "secret" not in why
    assert len(logged(home)) == 1


def test_a_webhook_that_is_not_there_fails_nothing(home: Home, hook: Hook) -> None:
    url = hook.url
    hook.shutdown()
    hook.server_close()
    assert send_alert(home, ALERT, url) is not None
    assert len(logged(home)) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "hook", "http://"])
def test_only_http_addresses_are_webhooks(home: Home, url: str) -> None:
    with pytest.raises(InputError, match="not an http or https address"):
        check_webhook(url)
    assert send_alert(home, ALERT, url) is not None


def test_a_failed_run_is_an_alert_in_the_words_of_its_step(home: Home, hook: Hook) -> None:
    home.root.mkdir(parents=True)
    home.arms_file.write_text(
        f"automation: {{webhook: '{hook.url}'}}\n"
        "arms: {instruction_tuning.random: {training: {steps: 1}}}\n"
    )
    from delift_pipeline.definitions import defs

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(dataset_version.name), ["nowhere"])
        result = defs.resolve_job_def(score_job.name).execute_in_process(
            instance=instance,
            partition_key="nowhere",
            run_config={"resources": {"store": {"config": {"home": str(home.root)}}}},
            raise_on_error=False,
        )
        failure = next(event for event in result.all_events if event.is_run_failure)
        context = dg.build_run_status_sensor_context(
            sensor_name="failed_run_alerts",
            dagster_event=failure,
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        failed_run_alerts(context, store=StoreResource(home=str(home.root)))
    (line,) = hook.bodies
    assert (line["job"], line["version"], line["step"]) == (
        score_job.name,
        "nowhere",
        "raw_dataset",
    )
    assert "nowhere" in line["reason"]
    assert logged(home) == [line]
