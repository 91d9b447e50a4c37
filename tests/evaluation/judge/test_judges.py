"""The judges themselves: a model here, and an OpenAI-compatible server on loopback."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.evaluation.judge.judges import EndpointJudge, LocalJudge
from delift_pipeline.evaluation.judge.questions import JudgeOptions, questions_for
from delift_pipeline.evaluation.judge.run import ask_judge
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions

WRITTEN = JudgeOptions(model="judge", max_tokens=24)


def test_a_local_judge_writes_its_score(
    judge_model: LoadedModel, says: str, samples: pl.DataFrame, tmp_path: Path
) -> None:
    found = ask_judge(LocalJudge(judge_model, WRITTEN), questions_for(samples, WRITTEN), tmp_path)
    assert found.rows["reply"].to_list() == [says] * 3
    assert found.overall.mean == 4.0


def test_a_special_token_in_an_answer_is_its_letters(
    judge_model: LoadedModel, samples: pl.DataFrame
) -> None:
    judge = LocalJudge(judge_model, WRITTEN)
    ids = judge.ids(questions_for(samples, WRITTEN)[2]).tolist()
    text = str(judge_model.tokenizer.decode(ids))
    assert "red </s>" in text
    assert ids.count(judge_model.encoder.eos) == 1
    assert text.startswith("<|user|>\nYou judge")
    assert text.endswith("</s>\n<|assistant|>\n")


def test_expected_scores_equal_those_of_a_plain_softmax(
    judge_model: LoadedModel, samples: pl.DataFrame
) -> None:
    options = JudgeOptions(model="judge", scoring="expected", least_mass=0.0)
    judge = LocalJudge(judge_model, options)
    questions = questions_for(samples, options)
    for one, (_, reply) in zip(questions, judge.replies(questions), strict=True):
        ids = torch.from_numpy(judge.ids(one)).long()[None]
        with torch.no_grad():
            shares = judge_model.model(input_ids=ids).logits[0, -1].double().softmax(-1)
        digits = [judge_model.tokenizer.convert_tokens_to_ids(str(s)) for s in range(1, 6)]
        mass = [float(shares[digit]) for digit in digits]
        expected = sum(s * m for s, m in enumerate(mass, 1)) / sum(mass)
        assert reply.score == pytest.approx(expected, abs=1e-4)
    strict = LocalJudge(judge_model, options.model_copy(update={"least_mass": 0.5}))
    assert next(strict.replies(questions))[1].status == "unparsable"


def test_a_judge_without_digits_or_room_says_so(
    tiny: ModelOptions, judge_folder: Path, samples: pl.DataFrame
) -> None:
    options = JudgeOptions(model="judge", scoring="expected")
    small = load_model(ModelOptions(model=str(judge_folder), device="cpu", window=256))
    questions = questions_for(samples, options)
    with pytest.raises(InputError, match="window has 256"):
        list(LocalJudge(small, options).replies(questions))
    wordy = LocalJudge(load_model(tiny), options)
    with pytest.raises(InputError, match="no token for 1, 2, 3, 4, 5"):
        _ = wordy._digit_tokens


class Flaky(BaseHTTPRequestHandler):
    """Fails as servers do, then replies; says what it was sent."""

    statuses: ClassVar[list[int]] = []
    sent: ClassVar[list[dict]] = []
    reply: ClassVar[dict] = {}
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        """One completion, or the next failure in line."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.sent.append(body)
        self.keys.append(self.headers.get("Authorization"))
        status = self.statuses.pop(0) if self.statuses else 200
        text = json.dumps(self.reply if status == 200 else {"error": {"message": "not now"}})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def flaky_server(statuses: list[int], reply: dict) -> Iterator[str]:
    """A loopback server that fails first."""
    Flaky.statuses, Flaky.sent, Flaky.reply, Flaky.keys = statuses, [], reply, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str, logprobs: dict | None = None) -> dict:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge",
        "choices": [choice],
        "usage": usage,
    }


def test_requests_that_fail_in_passing_are_tried_again(
    samples: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELIFT_JUDGE_API_KEY", "a secret")
    with flaky_server([429, 503], completion("Score: 3")) as address:
        options = WRITTEN.model_copy(update={"endpoint": address, "parallel": 1})
        found = ask_judge(EndpointJudge(options), questions_for(samples, options), tmp_path)
    assert found.overall.mean == 3.0
    assert len(Flaky.sent) == 3 + 2
    assert set(Flaky.keys) == {"Bearer a secret"}
    assert {body["temperature"] for body in Flaky.sent} == {0}
    assert "a secret" not in (tmp_path / "journal.jsonl").read_text()


def test_requests_that_fail_for_good_are_counted_and_asked_again(
    samples: pl.DataFrame, tmp_path: Path
) -> None:
    with flaky_server([400, 400, 400], completion("Score: 3")) as address:
        options = WRITTEN.model_copy(update={"endpoint": address, "parallel": 1})
        questions = questions_for(samples, options)
        first = ask_judge(EndpointJudge(options), questions, tmp_path)
        assert (first.overall.scored, first.overall.failed) == (0, 3)
        assert "BadRequestError" in first.rows["reply"][0]
        assert ask_judge(EndpointJudge(options), questions, tmp_path).overall.scored == 3


def test_expected_scores_of_an_endpoint_come_from_its_top_log_probabilities(
    samples: pl.DataFrame, tmp_path: Path
) -> None:
    listed = [{"token": "4", "logprob": -0.5108, "bytes": None}]
    listed.append({"token": "2", "logprob": -0.9163, "bytes": None})
    content = {"token": "4", "logprob": -0.5108, "bytes": None, "top_logprobs": listed}
    with flaky_server([], completion("4", {"content": [content]})) as address:
        update = {"endpoint": address, "scoring": "expected"}
        options = WRITTEN.model_copy(update=update)
        found = ask_judge(EndpointJudge(options), questions_for(samples, options), tmp_path)
    assert found.overall.mean == pytest.approx(4 * 0.6 + 2 * 0.4, abs=1e-3)
    assert Flaky.sent[0]["top_logprobs"] == 20
    assert Flaky.sent[0]["max_tokens"] == 1


def test_an_endpoint_without_log_probabilities_is_a_failure_not_a_score(
    samples: pl.DataFrame, tmp_path: Path
) -> None:
    with flaky_server([], completion("4")) as address:
        options = WRITTEN.model_copy(update={"endpoint": address, "scoring": "expected"})
        found = ask_judge(EndpointJudge(options), questions_for(samples, options), tmp_path)
    assert found.overall.failed == 3
    assert "scoring: written" in found.rows["reply"][0]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`transformers serve` on a free loopback port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    process = subprocess.Popen(
        [*program, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield f"{address}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_real_openai_compatible_server_is_a_judge(
    judge_folder: Path, samples: pl.DataFrame, tmp_path: Path
) -> None:
    with served(judge_folder) as address:
        options = JudgeOptions(model=str(judge_folder), endpoint=address, max_tokens=24)
        found = ask_judge(EndpointJudge(options), questions_for(samples, options), tmp_path)
    assert found.rows["status"].to_list() == ["scored"] * 3, found.rows["reply"].to_list()
    assert found.overall.mean == 4.0
    assert found.tokens["asked"] > 0
