"""The engine of a GPU: batches of many demonstrations with all their targets (`packing`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.core.errors import is_memory_error
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.decoder import Decoder
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.packing import HALF, pack_pairs, packed_attention, split_jobs
from delift_pipeline.scoring.transformers_engine import pair_too_large_error, plan_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IN_FLIGHT = 64
"""Demonstrations of one call: enough to fill a GPU where each has few targets."""


def reason_against_packing(model: "PreTrainedModel", window: int) -> str | None:
    """Return why the pairs of a model cannot be packed, or None if they can be tried."""
    config: Any = model.config.get_text_config()
    sliding = getattr(config, "sliding_window", None)
    if sliding and window > sliding:
        return "its attention slides"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "its layers are on several devices"
    device = model.get_input_embeddings().weight.device  # pyright: ignore
    if device.type != "cuda" or model.dtype not in HALF:
        return "packed attention needs a GPU and half precision"
    return None


class PackedEngine:
    """Scores the pairs of many demonstrations in one pass of the model's own layers.

    Logits are made at answer positions only, a chunk at a time. How many tokens a batch has
    follows from `plan_memory`.
    """

    name = "transformers"

    def __init__(
        self,
        model: "PreTrainedModel",
        batch_tokens: int | None = None,
        *,
        window: int | None = None,
        memory_limit: float | None = None,
        in_flight: int | None = None,
        compiled: bool = False,
    ) -> None:
        """Wrap a causal language model; the other options are those of `ModelOptions`.

        With `compiled` the small operations between the products of a layer are fused.

        Raises:
            InputError: not even one pair fits the memory limit.
        """
        self.decoder, self.in_flight = Decoder(model), in_flight or IN_FLIGHT
        self.plan = plan_memory(
            self.decoder,
            shared=True,
            window=window,
            batch_tokens=batch_tokens,
            memory_limit=memory_limit,
        )
        self.compiled, self._programs = compiled, list[Any]()
        compile_it = torch.compile(dynamic=True) if compiled else lambda own: own
        self._answer_logprobs = compile_it(answer_logprobs)

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide batches."""
        settings: dict[str, Any] = {"engine": self.name, "path": "packed"}
        settings |= {"batch_tokens": self.plan.tokens, "in_flight": self.in_flight}
        return settings | {"compiled": self.compiled}

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs together; a job that does not fit is cut, its prefix read again."""
        halved = [0] * len(jobs)
        pieces: list[list[torch.Tensor]] = [[] for _ in jobs]
        with self._fused_layers():
            for batch in split_jobs(records, jobs, self.plan.tokens):
                parts = [Job(jobs[place].prefix, jobs[place].rows[cut]) for place, cut in batch]
                logprobs, times = self._score_batch(records, parts)
                halved[batch[0][0]] += times
                sizes = [int(records.answer_lengths[part.rows].sum()) for part in parts]
                for (place, _), piece in zip(batch, logprobs.split(sizes), strict=True):
                    pieces[place].append(piece)
        # The one place that waits for the device.
        empty = np.empty(0, dtype=np.float32)
        flat = [torch.cat(own).cpu().numpy() if own else empty for own in pieces]
        lengths = [records.answer_lengths[job.rows] for job in jobs]
        return [TokenScores(*each) for each in zip(flat, lengths, halved, strict=True)]

    def _score_batch(
        self, records: EncodedRecords, jobs: Sequence[Job]
    ) -> tuple[torch.Tensor, int]:
        """Log p of every answer token, float32 [answers], and how often memory ran out."""
        try:
            return self._forward(records, jobs), 0
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if sum(len(job.rows) for job in jobs) < 2:
                raise pair_too_large_error() from error
        # Outside the handler: its error holds the frames, and with them the tensors, of the pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(jobs) > 1:
            halves = [jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]]
        else:
            ((prefix, rows),) = ((job.prefix, job.rows) for job in jobs)
            halves = [[Job(prefix, part)] for part in np.array_split(rows, 2)]
        done = [self._score_batch(records, half) for half in halves]
        return torch.cat([logprobs for logprobs, _ in done]), 1 + sum(times for _, times in done)

    def _forward(self, records: EncodedRecords, jobs: Sequence[Job]) -> torch.Tensor:
        pairs = pack_pairs(records, jobs, self.decoder.device)
        with packed_attention(self.decoder.model, pairs):
            hidden = self.decoder.body(
                input_ids=pairs.ids[None], position_ids=pairs.positions[None], use_cache=False
            ).last_hidden_state[0]
        hidden, rows = hidden.index_select(0, pairs.predicting), self.decoder.logit_rows
        return torch.cat(
            [
                self._answer_logprobs(self.decoder.logits(own), true)
                for own, true in zip(hidden.split(rows), pairs.answers.split(rows), strict=True)
            ]
        )

    @contextmanager
    def _fused_layers(self) -> Iterator[None]:
        """Run compiled layers inside, where that is asked for.

        Layers of one kind share one compiled program, for any number of tokens.
        """
        layers = list(getattr(self.decoder.body, "layers", [])) if self.compiled else []
        if layers and not self._programs:
            for layer in layers:
                layer.compile(dynamic=True)
                self._programs.append(layer._compiled_call_impl)
        try:
            for layer, program in zip(layers, self._programs, strict=True):
                layer._compiled_call_impl = program
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None


def answer_logprobs(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return log p of the true tokens, float32 [answers], given logits [answers, words].

    Once compiled, this reads the logits and writes no second array of their size.
    """
    logits = logits.float()
    return logits.gather(1, answers[:, None])[:, 0] - logits.logsumexp(-1)
