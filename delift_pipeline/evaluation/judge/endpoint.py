"""A judge behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from delift_pipeline.evaluation.judge.options import JudgeOptions
from delift_pipeline.evaluation.judge.prompt import SYSTEM, Question
from delift_pipeline.evaluation.judge.reply import Reply, expected_score, written_score

if TYPE_CHECKING:
    from openai import OpenAI

NO_KEY = "none"
MOST_LISTED = 20


class EndpointJudge:
    """Asks an endpoint, several questions at a time.

    Failed requests are tried again with exponential back-off by the client library (time-outs,
    connection faults, 408, 409, 429 and 5xx); what fails for good is a `failed` reply, asked again
    by the next run.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Each question with its reply, in the order in which replies come."""
        from openai import OpenAI

        client = OpenAI(
            base_url=self.options.endpoint,
            # Local servers want none, but the library insists on one.
            api_key=os.environ.get(self.options.api_key_variable) or NO_KEY,
            max_retries=self.options.retries,
            timeout=self.options.timeout,
        )
        with client, ThreadPoolExecutor(self.options.parallel) as pool:
            asked = {pool.submit(self._reply, client, one): one for one in questions}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _reply(self, client: "OpenAI", asked: Question) -> Reply:
        from openai import OpenAIError

        try:
            found: Any = client.chat.completions.create(**self._request(asked))
        except OpenAIError as error:
            return Reply("failed", None, f"{type(error).__name__}: {error}")
        if not found.choices:
            return Reply("failed", None, "the endpoint replied without any choice")
        return self._scored(found.choices[0], found.usage)

    def _request(self, asked: Question) -> dict[str, Any]:
        expected = self.options.scoring == "expected"
        request: dict[str, Any] = {
            "model": self.options.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": asked.text},
            ],
            "temperature": 0,
            "seed": self.options.seed,
            "max_tokens": 1 if expected else self.options.max_tokens,
        }
        return request | ({"logprobs": True, "top_logprobs": MOST_LISTED} if expected else {})

    def _scored(self, choice: Any, usage: Any) -> Reply:
        text = choice.message.content or ""
        if self.options.scoring == "written":
            score: float | None = written_score(text)
        else:
            content = getattr(choice.logprobs, "content", None)
            if not content:
                reason = "the endpoint gives no log-probabilities: use written scores"
                return Reply("failed", None, reason)
            listed = [(one.token, one.logprob) for one in content[0].top_logprobs]
            score, mass = expected_score(listed, self.options.least_mass)
            text = f"{text} (probability of the digits {mass:.3f})"
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply("unparsable" if score is None else "scored", score, text, *counts)
