"""The model as a method trains it: under adapters, under adapters on a 4-bit base, or whole."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.scoring.model import LoadedModel, load_model
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.storage.atomic import read_json
from delift_pipeline.training.options import TrainingOptions
from delift_pipeline.training.quantised import load_quantised
from delift_pipeline.training.save import ADAPTER_CONFIG, save_adapter, save_full

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder


@dataclass(frozen=True)
class Trainable:
    """A model ready for training.

    Attributes:
        model: The model; what requires a gradient is trained.
        encoder: The scoring encoder.
        fingerprint: The base model's scoring fingerprint.
        device: Where batches go.
        autocast: Context of a forward pass.
        save: Writes the trained weights into a folder.
    """

    model: torch.nn.Module
    encoder: "Encoder"
    fingerprint: str
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    save: Callable[[Path], None]


def prepare(options: TrainingOptions, model_options: ModelOptions, start: Path | None) -> Trainable:
    """Load the model afresh and make trainable what the method trains.

    A model that was evaluated before is never trained: on some CPUs bitsandbytes repacks its 4-bit
    weights in evaluation, and gradients are silently wrong from then on. How the scorer's weights
    are quantised (`load_in`) means nothing here: the method says what is trained on.

    Raises:
        Refused: `start` does not fit the method, or qlora's package is not installed.
    """
    _refuse_unfit_start(options, start)
    model_options = model_options.model_copy(update={"load_in": None})
    if options.method == "full":
        return _full(options, model_options, start)
    return _adapted(options, model_options, start)


def _adapted(
    options: TrainingOptions, model_options: ModelOptions, start: Path | None
) -> Trainable:
    load = load_quantised if options.method == "qlora" else load_model
    loaded = load(model_options)
    base = cast(Any, loaded.model)
    base.config.use_cache = False
    if options.method == "qlora":
        base = prepare_model_for_kbit_training(
            base, use_gradient_checkpointing=options.gradient_checkpointing
        )
    elif options.gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if start is None:
        model = get_peft_model(base, lora_config(options))
    else:
        model = PeftModel.from_pretrained(base, str(start), is_trainable=True)

    def save(out: Path) -> None:
        save_adapter(cast(PeftModel, model), model_options.model, out)

    return _trainable(loaded, cast(PeftModel, model), nullcontext, save)


def _full(options: TrainingOptions, model_options: ModelOptions, start: Path | None) -> Trainable:
    begin = {} if start is None else {"model": str(start), "revision": None}
    loaded = load_model(model_options.model_copy(update=begin))
    model = cast(Any, loaded.model)
    dtype = model.dtype
    # Steps are far smaller than the weights: in 16 bits most of them would round to nothing.
    model.to(dtype=torch.float32)
    model.requires_grad_(True)
    model.config.use_cache = False
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    device = next(model.parameters()).device

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    return _trainable(
        loaded, model, autocast, lambda out: save_full(model, loaded.tokenizer, dtype, out)
    )


def lora_config(options: TrainingOptions) -> LoraConfig:
    """PEFT's configuration of the adapters."""
    named = options.target_modules
    return LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=options.dropout,
        target_modules=named if isinstance(named, str) else list(named),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _trainable(
    loaded: LoadedModel,
    model: torch.nn.Module,
    autocast: Callable[[], AbstractContextManager[Any]],
    save: Callable[[Path], None],
) -> Trainable:
    device = next(model.parameters()).device
    return Trainable(model, loaded.encoder, loaded.fingerprint.digest, device, autocast, save)


def _refuse_unfit_start(options: TrainingOptions, start: Path | None) -> None:
    if start is None:
        return
    config = start / ADAPTER_CONFIG
    if config.is_file() == (options.method == "full"):
        held = "an adapter" if config.is_file() else "no adapter"
        why = f"{start.name} holds {held}, which {options.method} cannot go on from"
        raise Refused(Fault(why, field="start"))
    if options.method == "full":
        return
    stored = read_json(config)
    asked = {"r": options.rank, "lora_alpha": options.alpha}
    for name, value in asked.items():
        if stored[name] != value:
            raise Refused(
                Fault(f"{start.name} has {name} {stored[name]}, not {value:g}", field="training")
            )
