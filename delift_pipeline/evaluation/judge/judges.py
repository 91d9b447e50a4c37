"""Judges at an OpenAI-compatible endpoint or in this process, and the score of a reply."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from delift_pipeline.core.errors import InputError
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
"""How many log-probabilities an endpoint is asked for: the most that servers return."""
BATCH = 8
QUESTION_MARKER = "\u241fquestion\u241f"
"""Marks the question's place while the chat template is rendered."""
Status = Literal["scored", "unparsable", "failed"]


@dataclass(frozen=True)
class Reply:
    """A judge's reply to a question.

    Attributes:
        status: `scored`; `unparsable`: the reply has no score; `failed`: there is no reply.
        score: From 1 to 5, a whole number if the judge wrote it; None unless scored.
        text: The reply, or why there is none.
        prompt_tokens: How many tokens the question has, as the judge counts them.
        reply_tokens: How many tokens the reply has.
    """

    status: Status
    score: float | None
    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Judge(Protocol):
    """Answers questions about generated answers."""

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Yield each question with its reply, in any order."""
        ...


def written_score(text: str) -> int | None:
    """Return N from the last line, `Score: N`, if N is 1 to 5; otherwise None."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = SCORE_LINE.fullmatch(lines[-1]) if lines else None
    return int(match[1]) if match else None


def expected_score(
    tokens: Iterable[tuple[str, float]], least_mass: float
) -> tuple[float | None, float]:
    """Return the mean of the scores 1 to 5, weighted by the probabilities of their digits.

        sum_s s p(s) / sum_s p(s),  p(s) = sum of the probabilities of the tokens with text s

    Args:
        tokens: Text and log-probability of the tokens with which the reply may begin.
        least_mass: The least sum of p(s) for which the mean counts.

    Returns:
        The score, or None if the digits are too unlikely; and the sum of p(s).
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

    The client library retries failed requests with exponential back-off (time-outs, connection
    faults, 408, 409, 429 and 5xx). A question that still fails gets a `failed` reply, and the next
    run asks it again.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Yield each question with its reply, in the order in which replies arrive."""
        from openai import OpenAI

        client = OpenAI(
            base_url=self.options.endpoint,
            # Local servers need no key, but the library requires one.
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
            return Reply("failed", None, "the endpoint's reply has no choices")
        text, usage = completion.choices[0].message.content or "", completion.usage
        score: float | None = written_score(text)
        if expected:
            content = getattr(completion.choices[0].logprobs, "content", None)
            if not content:
                reason = "the endpoint returns no log-probabilities. Use scoring: written"
                return Reply("failed", None, reason)
            tokens = ((one.token, one.logprob) for one in content[0].top_logprobs)
            score, mass = expected_score(tokens, self.options.least_mass)
            text = f"{text} (probability of the digits {mass:.3f})"
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return _make_reply(score, text, *counts)


class LocalJudge:
    """Asks a loaded model, a few questions in one batch.

    The question is tokenised as plain text, so a special token in a record or in an answer is
    read as ordinary letters.
    """

    def __init__(self, loaded: "LoadedModel", options: JudgeOptions) -> None:
        self.loaded, self.options = loaded, options
        self.tokenizer: Any = loaded.tokenizer
        self.before, self.after = self._chat_frame()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Yield each question with its reply, in order."""
        ask = self._written_replies if self.options.scoring == "written" else self._expected_replies
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            yield from zip(batch, ask([self.ids(one) for one in batch]), strict=True)

    def ids(self, question: Question) -> np.ndarray:
        """Return a question's tokens inside the model's chat template, int32.

        Raises:
            InputError: the tokens and the reply do not fit the model's window.
        """
        encoder = self.loaded.encoder
        parts = [self.before, encoder.plain.ids(question.text), self.after]
        ids = np.concatenate(parts).astype(np.int32)
        room = self.options.max_tokens if self.options.scoring == "written" else 1
        if len(ids) + room > encoder.window:
            raise InputError(
                f"the question about record {question.record_id} has {len(ids):,} tokens and "
                f"its reply up to {room:,}, but the judge's window has {encoder.window:,}. Use a "
                "judge with a longer window",
                field="judge",
            )
        return ids

    def _chat_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens before and after a question, from the chat template if there is one."""
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
            reason = "the judge's chat template drops or repeats the question. Use another judge"
            raise InputError(reason)
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
        """All tokens of the vocabulary whose text is one of the five digits, with the digit."""
        texts = ((i, self.tokenizer.decode([i]).strip()) for i in range(len(self.tokenizer)))
        digit_tokens = [(token, text) for token, text in texts if text in DIGITS]
        missing = set(DIGITS) - {digit for _, digit in digit_tokens}
        if missing:
            raise InputError(
                f"the judge's tokenizer has no token for {', '.join(sorted(missing))}. Use "
                "scoring: written",
                field="scoring",
            )
        return digit_tokens
