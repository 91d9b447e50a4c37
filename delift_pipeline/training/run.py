"""Fine-tune a model on a subset, with a loss on the answer tokens only.

A killed run resumes from its stored state and ends with the same weights. The state is the weights
and AdamW's moments as safetensors, and the rest as JSON. Batches and dropout are functions of seed
and step, so they need no state.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from delift_pipeline.core.atomic import read_json, replace_folder, write_json
from delift_pipeline.core.errors import DeliftError, InputError, is_memory_error
from delift_pipeline.core.hashing import digest_json
from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.training.batches import (
    Example,
    answer_losses,
    collate,
    encode_examples,
    target_cuts,
)
from delift_pipeline.training.log import TrainingLog, weights_hash, write_training_log
from delift_pipeline.training.options import TrainingOptions, step_records
from delift_pipeline.training.setup import Trainable, load_trainable

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "moments.safetensors", "state.json"


@dataclass
class TrainingProgress:
    """The steps that were done so far, and their measurements."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Copy the trained weights of the state in `folder` into a model."""
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, value in _trainable(model).items():
            value.copy_(weights[name])


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


OnStep = Callable[[int, Mapping[str, float]], None]
"""Called after each step (from 0) with `loss` and `learning_rate`."""


class TrainingRun:
    """Runs the optimizer's steps over one set of examples.

    The state is stored in `folder` every `checkpoint_every` steps. If `folder` already has a state
    of the same run (the same `key`), the run resumes from it.
    """

    def __init__(
        self,
        options: TrainingOptions,
        seed: int,
        trainable: Trainable,
        examples: Sequence[Example],
        key: str = "",
        folder: Path | None = None,
    ) -> None:
        self.options, self.seed, self.trainable = options, seed, trainable
        self.examples, self.key, self.folder = examples, key, folder
        self.total = options.total_steps(len(examples))
        self.optimizer = _optimizer(options, trainable.model)
        self.done, self.resumed_at = TrainingProgress(), None
        state = read_json(folder / STATE) if folder and (folder / STATE).is_file() else None
        if folder and state and state["key"] == key:
            load_weights(folder, trainable.model)
            moments = load_file(folder / MOMENTS)
            for name, value in _trainable(trainable.model).items():
                self.optimizer.state[value] = {
                    stored.removeprefix(f"{name}/"): tensor.to(value.device)
                    for stored, tensor in moments.items()
                    if stored.rpartition("/")[0] == name
                }
            self.done = TrainingProgress(**state["done"])
            self.resumed_at = self.done.step

    def save(self, folder: Path) -> None:
        """Replace the state in `folder`; a killed process leaves the old or the new state."""
        names = _trainable(self.trainable.model)
        weights = {name: value.detach().cpu().contiguous() for name, value in names.items()}
        moments = {
            f"{name}/{kind}": tensor.detach().cpu().contiguous()
            for name, value in names.items()
            for kind, tensor in self.optimizer.state[value].items()
        }
        with replace_folder(folder) as temporary:
            save_file(weights, temporary / WEIGHTS)
            save_file(moments, temporary / MOMENTS)
            write_json(temporary / STATE, {"key": self.key, "done": vars(self.done)})

    def run_steps(self, progress: Progress, on_step: OnStep | None) -> None:
        """Run the remaining steps."""
        self.trainable.model.train()
        every = self.options.checkpoint_every
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
                due = every is not None and self.done.step % every == 0
                if self.folder is not None and due and self.done.step < self.total:
                    self.save(self.folder)

    def _step(self, step: int, positions: np.ndarray) -> tuple[float, float]:
        # Sorted by length, so forward passes need little padding. The split into forward passes
        # does not change the step's loss.
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
                f"training ran out of memory at batch_size {self.options.batch_size}. Lower "
                "batch_size and raise accumulation, or set gradient_checkpointing"
            ) from error
        self.optimizer.zero_grad(set_to_none=True)
        self.done.step = step + 1
        self.done.losses.append(loss)
        self.done.learning_rates.append(rate)
        return loss, rate

    def _backward(self, step: int, chosen: list[Example]) -> float:
        """Accumulate the gradient of the step's mean loss per answer token, and return the loss."""
        answer_tokens = sum(len(example.answer) for example in chosen)
        total = 0.0
        for start in range(0, len(chosen), self.options.batch_size):
            batch = collate(chosen[start : start + self.options.batch_size])
            self.done.tokens += int(batch.attention_mask.sum())
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
                f"the {what} is {value} at training step {step + 1} of {self.total}. Lower "
                "learning_rate, or set gradient_clip"
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


def train(
    options: TrainingOptions,
    model_options: ModelOptions,
    records: pl.DataFrame,
    seed: int,
    out: Path,
    start: Path | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    checkpoints: Path | None = None,
) -> TrainingLog:
    """Fine-tune on `records` and write the adapter, or the whole model, into `out`.

    The loss is the mean negative log-probability of the answer tokens of one step's records, with
    the end-of-text token, in the encoding that scoring uses. On a CPU the same arguments give the
    same bytes, whatever the order of the records.

    The seed decides initial adapter weights, batches and dropout. `start` is a folder with the
    adapter or model to start from. The state is stored in `checkpoints` every
    `options.checkpoint_every` steps; if a state of the same run is there, training resumes from it.

    Raises:
        InputError: no record can be used for training, `start` does not fit the method, or a
            package that the method needs is not installed.
        DeliftError: the loss is not finite, or memory ran out.
    """
    if records.is_empty():
        raise _no_examples_error("the subset is empty. Give a budget of at least one record")
    with seed_torch(seed):
        trainable = load_trainable(options, model_options, start)
        examples, encoded = encode_examples(trainable.encoder, records.sort("record_id"))
        if not examples:
            raise _no_examples_error(
                f"none of the subset's {len(encoded.unscorable):,} records can be used (the first: "
                f"{next(iter(encoded.unscorable.values()))}). Widen the window or choose other "
                "records"
            )
        # The key identifies the run, so it never resumes from another run's checkpoint.
        ids = [example.record_id for example in examples]
        start_hash = None if start is None else weights_hash(start)
        key = digest_json([options.request, seed, trainable.fingerprint, ids, start_hash])
        run = TrainingRun(options, seed, trainable, examples, key, checkpoints)
        run.run_steps(progress or SilentProgress(), on_step)
    trainable.save(out)
    return _write_log(
        out,
        trainable.model,
        run.done,
        method=options.method,
        epochs=options.presentations(len(examples)) / len(examples),
        records_used=len(examples),
        records_left_out=dict(encoded.unscorable),
        cuts=target_cuts(encoded),
        seed=seed,
        resumed_at=run.resumed_at,
        started_from=None if start is None else start.name,
    )


def write_untrained(
    options: TrainingOptions, model_options: ModelOptions, seed: int, out: Path
) -> TrainingLog:
    """Write an adapter that changes nothing, or the base model itself for full fine-tuning.

    A fresh adapter's second matrix is zero, so every output equals the base model's bit for bit.
    The seed decides the first matrix.
    """
    with seed_torch(seed):
        trainable = load_trainable(options, model_options, None)
    trainable.save(out)
    facts = {"method": options.method, "epochs": 0.0, "records_used": 0, "seed": seed}
    return _write_log(out, trainable.model, TrainingProgress(), **facts)


def _write_log(
    out: Path, model: torch.nn.Module, done: TrainingProgress, **facts: Any
) -> TrainingLog:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    total = sum(size for size, _ in sizes)
    if isinstance(model, PeftModel):
        # PEFT counts the weights that are packed into 4-bit tensors.
        trained, total = model.get_nb_trainable_parameters()
    counts = {"trainable_parameters": trained, "parameters": total, "steps": done.step}
    curves = {name: value for name, value in vars(done).items() if name != "step"}
    log = TrainingLog(**counts, **curves, **facts)
    write_training_log(out, log)
    return log


def _no_examples_error(why: str) -> InputError:
    return InputError(f"there is no record to train on: {why}", field="records")


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Seed torch inside the block, and restore the caller's random state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
