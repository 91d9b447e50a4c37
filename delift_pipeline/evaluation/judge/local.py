"""A judge that runs here: any causal language model with or without a chat template."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.generate import generated_answers
from delift_pipeline.evaluation.judge.options import JudgeOptions
from delift_pipeline.evaluation.judge.prompt import SYSTEM, Question
from delift_pipeline.evaluation.judge.reply import DIGITS, Reply, expected_score, written_score
from delift_pipeline.progress import SilentProgress
from delift_pipeline.scoring.model import LoadedModel

BATCH = 8
PLACE = "\u241fquestion\u241f"


class LocalJudge:
    """Asks a loaded model, a few questions in one batch.

    The question is tokenised as plain text: a special token in a record or in an answer is
    nothing but its letters.
    """

    def __init__(self, loaded: LoadedModel, options: JudgeOptions) -> None:
        self.loaded, self.options = loaded, options
        self.before, self.behind = self._frame()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Reply]]:
        """Each question with its reply, in order."""
        ask = self._written if self.options.scoring == "written" else self._expected
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            yield from zip(batch, ask([self.ids(one) for one in batch]), strict=True)

    def ids(self, asked: Question) -> np.ndarray:
        """A question's tokens inside the model's own chat frame, int32.

        Raises:
            Refused: they do not fit the model's window.
        """
        ids = np.concatenate(
            [self.before, self.loaded.encoder.plain.ids(asked.text), self.behind]
        ).astype(np.int32)
        room = self.options.max_tokens if self.options.scoring == "written" else 1
        if len(ids) + room > self.loaded.encoder.window:
            raise Refused(
                Fault(
                    f"the question about record {asked.record_id} takes {len(ids):,} tokens and "
                    f"its reply {room:,}, more than the judge's window of "
                    f"{self.loaded.encoder.window:,}: take a judge with a longer one",
                    field="judge",
                )
            )
        return ids

    def _frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens before and behind a question: the chat template's, or the system text's."""
        tokenizer: Any = self.loaded.tokenizer
        plain = self.loaded.encoder.plain
        if tokenizer.chat_template is None:
            start = np.asarray(self.loaded.encoder.bos, dtype=np.int32)
            return np.concatenate([start, plain.ids(f"{SYSTEM}\n\n")]), plain.ids("\n\n")
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{SYSTEM}\n\n{PLACE}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        parts = rendered.split(PLACE)
        if len(parts) != 2:
            raise Refused(Fault("the judge's chat template drops or repeats what is said to it"))
        before, behind = (
            np.asarray(tokenizer(part, add_special_tokens=False)["input_ids"], dtype=np.int32)
            for part in parts
        )
        return before, behind

    def _written(self, prompts: Sequence[np.ndarray]) -> list[Reply]:
        answers = generated_answers(
            self.loaded.model,
            prompts,
            [self.loaded.encoder.eos],
            self.options.max_tokens,
            len(prompts),
            SilentProgress(),
        )
        return [
            self._read(len(prompt), answer.tokens)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _read(self, prompt_tokens: int, tokens: list[int]) -> Reply:
        tokenizer: Any = self.loaded.tokenizer
        text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        score = written_score(text)
        status = "unparsable" if score is None else "scored"
        return Reply(status, score, text, prompt_tokens, len(tokens))

    @torch.inference_mode()
    def _expected(self, prompts: Sequence[np.ndarray]) -> list[Reply]:
        replies = []
        for prompt in prompts:
            device = next(self.loaded.model.parameters()).device
            ids = torch.from_numpy(prompt.astype(np.int64))[None].to(device)
            logits = self.loaded.model(input_ids=ids, use_cache=False).logits[0, -1].float()
            logprobs = torch.log_softmax(logits, dim=-1)
            listed = [(digit, float(logprobs[token])) for token, digit in self._digit_tokens]
            score, mass = expected_score(listed, self.options.least_mass)
            status = "unparsable" if score is None else "scored"
            text = f"probability of the digits {mass:.6f}"
            replies.append(Reply(status, score, text, len(prompt), 1))
        return replies

    @cached_property
    def _digit_tokens(self) -> list[tuple[int, str]]:
        """Every token of the vocabulary that reads as one of the five digits."""
        tokenizer: Any = self.loaded.tokenizer
        texts = ((token, tokenizer.decode([token]).strip()) for token in range(len(tokenizer)))
        found = [(token, text) for token, text in texts if text in DIGITS]
        missing = set(DIGITS) - {digit for _, digit in found}
        if missing:
            raise Refused(
                Fault(
                    f"the judge's tokenizer has no token for {', '.join(sorted(missing))}: use "
                    "written scores",
                    field="scoring",
                )
            )
        return found
