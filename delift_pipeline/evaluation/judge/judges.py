"""The judges, behind an OpenAI-compatible endpoint or in this process, and the score of a reply."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from delift_pipeline.core.errors import Refused
from delift_pipeline.core.progress import SilentProgress
from delift_pipeline.evaluation.judge.questions import SCORES, SYSTEM, JudgeOptions, Question
from delift_pipeline.evaluation.options import EvaluationOptions

if TYPE_CHECKING:
    from openai import OpenAI

    from delift_pipeline.scoring.model import LoadedModel

SCORE_LINE = re.compile(
    r"\**(?:score|\[result\])\**\s*:?\s*\**\s*([1-5])\**\s*(?:/\s*5)?\.?\**", re.I
)
DIGITS = tuple(str(score) for score in SCORES)
TOP_LOGPROBS = 20
"""Log-probabilities asked of an endpoint; servers give no more."""
BATCH = 8
QUESTION_MARKER = "\u241fquestion\u241f"
"""Stands for the question while the chat template is rendered."""
Status = Literal["scored", "unparsable", "failed"]


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        status: `scored`; `unparsable`: there is a reply but no score in it; `failed`: no reply.
        score: From 1 to 5, whole where it was written; None unless scored.
        text: The reply, or why there is none.
        prompt_tokens: Tokens of the question, as the judge counts them.
        reply_tokens: Tokens of the reply.
    """

    status: Status
    score: float | None
    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Judge(Protocol):
    """Who is asked."""

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Each question with its reply, in any order."""
        ...


def written_score(text: str) -> int | None:
    """The score on the last line, `Score: N`, where N is 1 to 5; None for anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = SCORE_LINE.fullmatch(lines[-1]) if lines else None
    return int(match[1]) if match else None


def expected_score(
    tokens: Iterable[tuple[str, float]], least_mass: float
) -> tuple[float | None, float]:
    """The mean of the scores 1 to 5, each weighted by the probability of its digit.

        sum_s s p(s) / sum_s p(s),  p(s) = summed probability of the tokens that read s

    Args:
        tokens: Text and log-probability of the tokens the reply may begin with.
        least_mass: Least sum of p(s) for which the mean counts.

    Returns:
        The score, or None where the digits are too unlikely; and the sum of p(s).
    """
    mass = dict.fromkeys(DIGITS, 0.0)
    for text, logprob in tokens:
        if (digit := text.strip()) in mass:
            mass[digit] += math.exp(logprob)
    total = sum(mass.values())
    if total <= 0 or total < least_mass:
        return None, total
    return sum(int(digit) * share for digit, share in mass.items()) / total, total


def _make_reply(score: float | None, text: str, prompt_tokens: int, reply_tokens: int) -> Reply:
    status = "unparsable" if score is None else "scored"
    return Reply(status, score, text, prompt_tokens, reply_tokens)


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
            api_key=os.environ.get(self.options.api_key_variable) or "none",
            max_retries=self.options.retries,
            timeout=self.options.timeout,
        )
        with client, ThreadPoolExecutor(self.options.parallel) as pool:
            futures = {pool.submit(self._reply, client, one): one for one in questions}
            try:
                for done in as_completed(futures):
                    yield futures[done], done.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _reply(self, client: "OpenAI", question: Question) -> Reply:
        from openai import OpenAIError

        expected = self.options.scoring == "expected"
        logprobs: dict[str, Any] = (
            {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if expected else {}
        )
        try:
            completion = client.chat.completions.create(
                model=self.options.model,
                messages=[
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": question.text},
                ],
                temperature=0,
                seed=self.options.seed,
                max_tokens=1 if expected else self.options.max_tokens,
                **logprobs,
            )
        except OpenAIError as error:
            return Reply("failed", None, f"{type(error).__name__}: {error}")
        if not completion.choices:
            return Reply("failed", None, "the endpoint replied without any choice")
        text, usage = completion.choices[0].message.content or "", completion.usage
        score: float | None = written_score(text)
        if expected:
            content = getattr(completion.choices[0].logprobs, "content", None)
            if not content:
                reason = "the endpoint gives no log-probabilities: use written scores"
                return Reply("failed", None, reason)
            tokens = ((one.token, one.logprob) for one in content[0].top_logprobs)
            score, mass = expected_score(tokens, self.options.least_mass)
            text = f"{text} (probability of the digits {mass:.3f})"
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return _make_reply(score, text, *counts)


class LocalJudge:
    """Asks a loaded model, a few questions in one batch.

    The question is tokenised as plain text: a special token in a record or in an answer is
    nothing but its letters.
    """

    def __init__(self, loaded: "LoadedModel", options: JudgeOptions) -> None:
        self.loaded, self.options = loaded, options
        self.tokenizer: Any = loaded.tokenizer
        self.before, self.after = self._chat_frame()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Each question with its reply, in order."""
        ask = self._written_replies if self.options.scoring == "written" else self._expected_replies
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            yield from zip(batch, ask([self.ids(one) for one in batch]), strict=True)

    def ids(self, question: Question) -> np.ndarray:
        """A question's tokens inside the model's own chat frame, int32.

        Raises:
            Refused: they do not fit the model's window.
        """
        encoder = self.loaded.encoder
        parts = [self.before, encoder.plain.ids(question.text), self.after]
        ids = np.concatenate(parts).astype(np.int32)
        room = self.options.max_tokens if self.options.scoring == "written" else 1
        if len(ids) + room > encoder.window:
            raise Refused(
                f"the question about record {question.record_id} takes {len(ids):,} tokens and "
                f"its reply {room:,}, more than the judge's window of "
                f"{encoder.window:,}: take a judge with a longer one",
                field="judge",
            )
        return ids

    def _chat_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before and behind a question: the chat template's, or the system text's."""
        encoder = self.loaded.encoder
        if self.tokenizer.chat_template is None:
            start = np.asarray(encoder.bos, dtype=np.int32)
            before = np.concatenate([start, encoder.plain.ids(f"{SYSTEM}\n\n")])
            return before, encoder.plain.ids("\n\n")
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{SYSTEM}\n\n{QUESTION_MARKER}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        parts = rendered.split(QUESTION_MARKER)
        if len(parts) != 2:
            raise Refused("the judge's chat template drops or repeats what is said to it")
        before, after = self.tokenizer(parts, add_special_tokens=False)["input_ids"]
        return np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)

    def _written_replies(self, prompts: Sequence[np.ndarray]) -> Iterator[Reply]:
        from delift_pipeline.evaluation.engines import TransformersEvaluation

        engine = TransformersEvaluation(self.loaded.model, EvaluationOptions(batch_size=BATCH))
        stops, longest = [self.loaded.encoder.eos], self.options.max_tokens
        answers = engine.answers(prompts, stops, longest, SilentProgress())
        for prompt, answer in zip(prompts, answers, strict=True):
            text = self.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
            yield _make_reply(written_score(text), text, len(prompt), len(answer.tokens))

    def _expected_replies(self, prompts: Sequence[np.ndarray]) -> Iterator[Reply]:
        import torch

        model: Any = self.loaded.model
        for prompt in prompts:
            ids = torch.from_numpy(prompt.astype(np.int64))[None].to(self.loaded.device)
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
            logprobs = logits.log_softmax(dim=-1)
            digit_logprobs = (
                (digit, float(logprobs[token])) for token, digit in self._digit_tokens
            )
            score, mass = expected_score(digit_logprobs, self.options.least_mass)
            yield _make_reply(score, f"probability of the digits {mass:.6f}", len(prompt), 1)

    @cached_property
    def _digit_tokens(self) -> list[tuple[int, str]]:
        """Every token of the vocabulary that reads as one of the five digits."""
        texts = ((i, self.tokenizer.decode([i]).strip()) for i in range(len(self.tokenizer)))
        digit_tokens = [(token, text) for token, text in texts if text in DIGITS]
        missing = set(DIGITS) - {digit for _, digit in digit_tokens}
        if missing:
            raise Refused(
                f"the judge's tokenizer has no token for {', '.join(sorted(missing))}: use "
                "written scores",
                field="scoring",
            )
        return digit_tokens
