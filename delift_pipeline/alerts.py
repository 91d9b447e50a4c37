"""Alerts: what failed, as a line in the home's `alerts.jsonl` and, if asked for, at a webhook."""

import datetime as dt
import logging
import os
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from delift_pipeline.errors import Refused
from delift_pipeline.storage.home import Home
from delift_pipeline.storage.json_text import json_text
from delift_pipeline.validation import checked_webhook

WEBHOOK_VARIABLE = "DELIFT_ALERT_URL"
WEBHOOK_SECONDS = 10.0
TEXT_LIMIT = 2000
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """One failed run.

    Attributes:
        job: The job.
        run_id: The Dagster run.
        reason: What the failed step said, shortened.
        version: The dataset version, if the run was launched for one.
        arm: The arm, likewise.
        step: The failed step, where it was one.
        will_retry: Whether the run is launched again by itself.
        time: When this was noticed, ISO 8601 in UTC.
    """

    job: str
    run_id: str
    reason: str
    version: str | None = None
    arm: str | None = None
    step: str | None = None
    will_retry: bool = False
    time: str = field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))

    def as_json(self) -> dict[str, str | bool | None]:
        """The alert as it is logged and posted; `text` is the sentence a chat shows."""
        what = "/".join(filter(None, (self.version, self.arm))) or "no partition"
        where = f", step {self.step}" if self.step else ""
        text = f"delift: {self.job} of {what} failed{where}: {self.reason[:TEXT_LIMIT]}"
        return {**asdict(self), "reason": self.reason[:TEXT_LIMIT], "text": text}


def alerts_file(home: Home) -> Path:
    """Where alerts are logged, one JSON object a line."""
    return home.root / "alerts.jsonl"


def send_alert(home: Home, alert: Alert, webhook: str | None) -> str | None:
    """Log an alert, and post it where a webhook is set; a webhook that fails fails nothing.

    Args:
        home: The home whose run failed.
        alert: What happened.
        webhook: Where to post it; `$DELIFT_ALERT_URL` comes before it.

    Returns:
        Why it could not be posted, or None.
    """
    line = json_text(alert.as_json())
    file = alerts_file(home)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")), file.open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")
    url = os.environ.get(WEBHOOK_VARIABLE) or webhook
    return _post(url, line) if url else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the address that was set was checked, another was not."""

    def redirect_request(self, *_: object) -> None:
        return None


def _post(url: str, body: str) -> str | None:
    try:
        request = urllib.request.Request(
            checked_webhook(url), body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=WEBHOOK_SECONDS):
            return None
    except (Refused, urllib.error.URLError, OSError, ValueError) as error:
        # The address may hold a secret: the host says enough.
        reason = f"the alert could not be posted to {urlsplit(url).hostname}: {error}"
        LOG.warning(reason)
        return reason
