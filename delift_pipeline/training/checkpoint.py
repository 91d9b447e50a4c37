"""A training run's state on disk, from which a killed run goes on to the same weights.

Weights and AdamW's moments are safetensors, the rest is JSON. Batches and dropout are functions of
seed and step, so nothing else has to be kept.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from delift_pipeline.storage.atomic import read_json, replacing_folder, write_json

WEIGHTS, MOMENTS, STATE = "weights.safetensors", "moments.safetensors", "state.json"


@dataclass
class Progressed:
    """What training has done so far.

    Attributes:
        step: Steps done.
        losses: Loss of each.
        learning_rates: Learning rate of each.
        tokens: Tokens fed.
        answer_tokens: Answer tokens among them.
        seconds: Wall time spent.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0


def save_checkpoint(
    folder: Path,
    key: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    done: Progressed,
) -> None:
    """Put the state at `folder`, in place of the one before; a kill leaves the old or the new."""
    names = _trainable(model)
    weights = {name: value.detach().cpu().contiguous() for name, value in names.items()}
    moments = {
        f"{name}/{kind}": tensor.detach().cpu().contiguous()
        for name, value in names.items()
        for kind, tensor in optimizer.state[value].items()
    }
    with replacing_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS)
        save_file(moments, temporary / MOMENTS)
        write_json(temporary / STATE, {"key": key, "done": vars(done)})


def load_checkpoint(
    folder: Path, key: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progressed | None:
    """Restore the state at `folder`; None where there is none of this very run (`key`)."""
    state = read_json(folder / STATE) if (folder / STATE).is_file() else None
    if state is None or state["key"] != key:
        return None
    load_weights(folder, model)
    moments = load_file(folder / MOMENTS)
    for name, value in _trainable(model).items():
        optimizer.state[value] = {
            stored.removeprefix(f"{name}/"): tensor.to(value.device)
            for stored, tensor in moments.items()
            if stored.rpartition("/")[0] == name
        }
    return Progressed(**state["done"])


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Give a model the trained weights of the state at `folder`."""
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, value in _trainable(model).items():
            value.copy_(weights[name])


def _trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
