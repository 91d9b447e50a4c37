"""Gradients of single records with respect to adapters, many records in one backward pass.

For a linear layer with input x and gradient g at its output, the gradient of record n's loss is

    dL_n / dW = sum_t g_nt x_nt^T

and since no record's loss depends on another record's activations, one backward pass of the summed
losses gives the g of all of them. Nothing of the size of the base model's weights is made.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from delift_pipeline.errors import DeliftError
from delift_pipeline.scoring.batches import length_batches
from delift_pipeline.training.batches import Batch, Example, answer_losses, collate


@dataclass
class _Call:
    """One use of a layer in a forward pass."""

    layer: int
    inputs: torch.Tensor
    outputs: torch.Tensor


class RecordGradients:
    """Per-record gradients of a model's trainable linear weights.

    Attributes:
        names: The trainable weights, in the order of a gradient's parts.
        size: Numbers in one gradient.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap a model in evaluation mode whose adapters are trainable.

        Raises:
            DeliftError: something other than weights of linear layers is trainable.
        """
        self.model = model
        modules = model.named_modules()
        self._layers = [
            (f"{name}.weight", module)
            for name, module in modules
            if isinstance(module, torch.nn.Linear) and module.weight.requires_grad
        ]
        self.names = tuple(name for name, _ in self._layers)
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        if not self.names or trained != set(self.names):
            odd = sorted(trained - set(self.names))[:1] or ["nothing is trainable"]
            raise DeliftError(
                f"gradients of single records are made of adapters of linear layers only: {odd[0]}"
            )
        sizes = [layer.weight.numel() for _, layer in self._layers]
        self._starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
        self.size = self._starts[-1]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The gradient of each record's mean loss per answer token, float32 [records, size]."""
        rows, width = batch.input_ids.shape
        with self._recorded() as calls:
            losses = answer_losses(self.model, batch)
        answers = torch.bincount(batch.rows, minlength=rows)
        total = (losses / answers[batch.rows]).sum()
        found = torch.autograd.grad(total, [call.outputs for call in calls])
        gradients = torch.zeros(rows, self.size, device=losses.device)
        for call, at_output in zip(calls, found, strict=True):
            start, stop = self._starts[call.layer : call.layer + 2]
            gradients[:, start:stop] += _weight_gradients(call.inputs, at_output, rows, width)
        return gradients

    @contextmanager
    def _recorded(self) -> Iterator[list[_Call]]:
        """Inputs and outputs of the layers in the forward passes inside."""
        calls: list[_Call] = []

        def recorder(number: int) -> Callable[..., None]:
            def record(_: object, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
                calls.append(_Call(number, inputs[0].detach(), outputs))

            return record

        hooks = [
            layer.register_forward_hook(recorder(number))
            for number, (_, layer) in enumerate(self._layers)
        ]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()


def _weight_gradients(
    inputs: torch.Tensor, at_output: torch.Tensor, rows: int, width: int
) -> torch.Tensor:
    """sum_t g_nt x_nt^T, flattened, float32 [records, out * in].

    Raises:
        DeliftError: the layer does not see records apart, as the experts of a mixture do not.
    """
    if inputs.numel() // inputs.shape[-1] != rows * width:
        raise DeliftError(
            "a layer mixes the tokens of several records (a mixture of experts), so gradients of "
            "single records cannot be told apart; name other layers in target_modules"
        )
    x = inputs.reshape(rows, width, -1).float()
    g = at_output.reshape(rows, width, -1).float()
    return torch.bmm(g.transpose(1, 2), x).flatten(1)


def gradient_batches(
    examples: Sequence[Example], size: int, tokens: int, memory: int
) -> Iterator[list[int]]:
    """Places of examples of near lengths, longest first, within a token and a memory limit.

    Args:
        examples: The records.
        size: Numbers in one gradient.
        tokens: Most tokens a batch, padding included; a longer record goes alone.
        memory: Most bytes that the gradients of a batch take; one gradient always fits.
    """
    most = max(1, memory // (4 * size))
    lengths = np.asarray([len(example) for example in examples], dtype=np.int64)
    for places in length_batches(lengths, lambda longest: min(most, tokens // longest)):
        yield places.tolist()


def batch_of(examples: Sequence[Example], places: Sequence[int], device: torch.device) -> Batch:
    """Some examples as a padded batch on a device."""
    return collate([examples[place] for place in places]).to(device)
