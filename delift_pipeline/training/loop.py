"""The optimizer's steps of one training run."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from delift_pipeline.errors import DeliftError, is_memory_error
from delift_pipeline.progress import Progress
from delift_pipeline.storage.hashing import digest_json
from delift_pipeline.training.batches import Example, answer_losses, collate
from delift_pipeline.training.checkpoint import Progressed, load_checkpoint, save_checkpoint
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.order import step_records
from delift_pipeline.training.setup import Trainable

OnStep = Callable[[int, Mapping[str, float]], None]
"""Called after each step (from 0) with `loss` and `learning_rate`."""


@dataclass(frozen=True)
class Kept:
    """Where and how often the state is kept."""

    folder: Path | None
    key: str
    every: int | None


class Run:
    """The optimizer's steps over one set of examples."""

    def __init__(
        self,
        options: TrainingOptions,
        seed: int,
        trainable: Trainable,
        examples: Sequence[Example],
        kept: Kept,
    ) -> None:
        self.options, self.seed, self.trainable = options, seed, trainable
        self.examples, self.kept = examples, kept
        self.total = options.total_steps(len(examples))
        self.optimizer = _optimizer(options, trainable.model)
        self.done, self.resumed_at = Progressed(), None
        if kept.folder is not None:
            found = load_checkpoint(kept.folder, kept.key, trainable.model, self.optimizer)
            self.done, self.resumed_at = (found, found.step) if found else (self.done, None)

    def go(self, progress: Progress, on_step: OnStep | None) -> None:
        """Do the steps that are left."""
        self.trainable.model.train()
        kept = self.kept
        with progress.track("train", self.total, "steps") as meter:
            meter.advance(self.done.step)
            order = step_records(self.options, len(self.examples), self.seed)
            for step, positions in islice(enumerate(order), self.done.step, None):
                started = time.monotonic()
                loss, rate = self._step(step, positions)
                self.done.seconds += time.monotonic() - started
                if on_step:
                    on_step(step, {"loss": loss, "learning_rate": rate})
                meter.advance()
                due = kept.every is not None and self.done.step % kept.every == 0
                if kept.folder is not None and due and self.done.step < self.total:
                    model = self.trainable.model
                    save_checkpoint(kept.folder, kept.key, model, self.optimizer, self.done)

    def account(self) -> dict[str, Any]:
        """What the run did, for the log."""
        done = vars(self.done)
        trained, parameters = parameter_counts(self.trainable.model)
        return {
            **{name: value for name, value in done.items() if name != "step"},
            "steps": self.done.step,
            "trainable_parameters": trained,
            "parameters": parameters,
            "resumed_at": self.resumed_at,
        }

    def _step(self, step: int, positions: np.ndarray) -> tuple[float, float]:
        # Near lengths share a forward pass; the step's loss does not depend on the split.
        chosen = sorted((self.examples[i] for i in positions), key=len)
        torch.manual_seed(int(digest_json([self.seed, step])[:15], 16))
        rate = self.options.learning_rate_at(step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            loss = self._backward(step, chosen)
            parameters = [p for p in self.trainable.model.parameters() if p.grad is not None]
            limit = self.options.gradient_clip or float("inf")
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            self._refuse_non_finite(norm, "gradient", step)
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            raise DeliftError(
                f"training ran out of memory at batch_size {self.options.batch_size}: lower "
                "batch_size and raise accumulation, or set gradient_checkpointing"
            ) from error
        self.optimizer.zero_grad(set_to_none=True)
        self.done.step = step + 1
        self.done.losses.append(loss)
        self.done.learning_rates.append(rate)
        return loss, rate

    def _backward(self, step: int, chosen: list[Example]) -> float:
        """Accumulate the gradient of the step's mean loss per answer token; returns that loss."""
        answer_tokens = sum(len(example.answer) for example in chosen)
        total = 0.0
        for start in range(0, len(chosen), self.options.batch_size):
            batch = collate(chosen[start : start + self.options.batch_size])
            self.done.tokens += batch.tokens
            with self.trainable.autocast():
                losses = answer_losses(self.trainable.model, batch.to(self.trainable.device))
            loss = losses.sum() / answer_tokens
            total += float(loss.detach())
            self._refuse_non_finite(total, "loss", step)
            loss.backward()
        self.done.answer_tokens += answer_tokens
        return total

    def _refuse_non_finite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            raise DeliftError(
                f"the {what} is {value} at training step {step + 1} of {self.total}: lower "
                "learning_rate, or give a gradient_clip"
            )


def _optimizer(options: TrainingOptions, model: torch.nn.Module) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Trained parameters and all parameters."""
    if isinstance(model, PeftModel):
        # PEFT knows how many weights a packed 4-bit tensor holds.
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
