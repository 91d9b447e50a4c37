"""Load a model for training: with LoRA adapters, with adapters on a 4-bit base, or as a whole.

Adapters on a 4-bit base are QLoRA (Dettmers et al., arXiv 2305.14314).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

from delift_pipeline.core.atomic import read_json, write_json
from delift_pipeline.core.errors import InputError
from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model import (
    LoadedModel,
    load_encoder,
    load_model,
    load_tokenizer,
    quantisation_config,
    refuse_if_loading_fails,
    refuse_without_bitsandbytes,
    resolve_device,
    silence_transformers,
)
from delift_pipeline.scoring.model_files import model_folder
from delift_pipeline.scoring.options import ModelOptions, portable_name
from delift_pipeline.scoring.template_choice import with_chosen_template
from delift_pipeline.training.options import TrainingOptions

if TYPE_CHECKING:
    from delift_pipeline.prompts.encode import Encoder


ADAPTER_CONFIG = "adapter_config.json"
Autocast = Callable[[], AbstractContextManager[Any]]
Save = Callable[[Path], None]
Parts = tuple[LoadedModel, torch.nn.Module, Autocast, Save]


@dataclass(frozen=True)
class Trainable:
    """A model ready for training.

    Attributes:
        model: The model, in which every weight that requires a gradient is trained.
        fingerprint: The base model's scoring fingerprint.
        autocast: Returns the context for a forward pass.
        save: Writes the trained weights into a folder.
    """

    model: torch.nn.Module
    encoder: "Encoder"
    fingerprint: str
    device: torch.device
    autocast: Autocast
    save: Save


def load_trainable(
    options: TrainingOptions, model_options: ModelOptions, start: Path | None
) -> Trainable:
    """Load a new copy of the model and make the weights trainable that the method trains.

    A model that was evaluated before is never trained: on some CPUs bitsandbytes repacks its 4-bit
    weights during evaluation, and later gradients are silently wrong. The scorer's quantisation
    (`load_in`) is ignored here, because the method decides in which form the base is loaded.

    Raises:
        InputError: `start` does not fit the method, or qlora's package is not installed.
    """
    if start is not None:
        _refuse_unfit_start(options, start)
    model_options = model_options.model_copy(update={"load_in": None})
    load = _load_full if options.method == "full" else _load_with_adapter
    loaded, model, autocast, save = load(options, model_options, start)
    device = next(model.parameters()).device
    return Trainable(model, loaded.encoder, loaded.fingerprint.digest, device, autocast, save)


def _load_with_adapter(
    options: TrainingOptions, model_options: ModelOptions, start: Path | None
) -> Parts:
    loaded = (_load_4bit if options.method == "qlora" else load_model)(model_options)
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
        model = cast(PeftModel, get_peft_model(base, lora_config(options)))
    else:
        model = PeftModel.from_pretrained(base, str(start), is_trainable=True)

    def save(out: Path) -> None:
        # Equal weights must give equal bytes, so no path of this machine is written.
        model.peft_config["default"].base_model_name_or_path = portable_name(model_options.model)
        # The vocabulary is never resized. Without this argument PEFT would ask the hub about it.
        model.save_pretrained(str(out), save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)
        config = read_json(out / ADAPTER_CONFIG)
        # PEFT keeps the module names in a set, whose order differs between processes.
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        write_json(out / ADAPTER_CONFIG, config)

    return loaded, model, nullcontext, save


def _load_4bit(options: ModelOptions) -> LoadedModel:
    """Load a model with linear weights in nf4, doubly quantised, that computes in `dtype`.

    The scorer's loader cannot be used because it evaluates the quantised model once.
    """
    refuse_without_bitsandbytes("qlora", "use method lora", "method")
    from transformers import AutoModelForCausalLM

    folder, compute = model_folder(options), getattr(torch, options.dtype)
    with refuse_if_loading_fails(options, "the model"), silence_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=compute,
            quantization_config=quantisation_config("4bit", compute),
            device_map={"": resolve_device(options.device)},
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
        )
    tokenizer = load_tokenizer(folder, options)
    return LoadedModel(
        model, tokenizer, load_encoder(options), options, fingerprint_of(options), folder
    )


def _load_full(options: TrainingOptions, model_options: ModelOptions, start: Path | None) -> Parts:
    if start is not None:
        # The base model decides the template, and not the files that training wrote.
        own = {"model": str(start), "revision": None}
        model_options = with_chosen_template(model_options).model_copy(update=own)
    loaded = load_model(model_options)
    model = cast(Any, loaded.model)
    dtype = model.dtype
    # Steps are far smaller than the weights: in 16 bits most of them would be rounded away.
    model.to(dtype=torch.float32)
    model.requires_grad_(True)
    model.config.use_cache = False
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    kind = next(model.parameters()).device.type

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if dtype == torch.float32 else torch.autocast(kind, dtype)

    def save(out: Path) -> None:
        model.to(dtype=dtype)
        model.config.use_cache = True
        model.save_pretrained(out)
        loaded.tokenizer.save_pretrained(str(out))

    return loaded, model, autocast, save


def lora_config(options: TrainingOptions) -> LoraConfig:
    """Return PEFT's configuration of the adapters."""
    modules = options.target_modules
    return LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=options.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _refuse_unfit_start(options: TrainingOptions, start: Path) -> None:
    config = start / ADAPTER_CONFIG
    if config.is_file() == (options.method == "full"):
        content = "is an adapter" if config.is_file() else "is not an adapter"
        why = f"{start.name} {content}, so method {options.method} cannot start from it"
        raise InputError(why, field="start")
    stored = read_json(config) if config.is_file() else {}
    for name, value in {"r": options.rank, "lora_alpha": options.alpha}.items():
        if stored.get(name, value) != value:
            why = f"{start.name} has {name} {stored[name]}, not {value:g}. Use the same value"
            raise InputError(why, field="training")
