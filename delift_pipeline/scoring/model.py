"""Load a language model to score with. It is read from safetensors files only.

Code that comes with a model runs only with `trust_remote_code`.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from delift_pipeline.core.errors import DeliftError, InputError, is_memory_error
from delift_pipeline.prompts.encode import Encoder
from delift_pipeline.scoring.fingerprint import Fingerprint, fingerprint_of
from delift_pipeline.scoring.model_files import (
    BYTES,
    GIB,
    model_folder,
    read_config,
    resolve_window,
    stored_parameters,
    weight_files,
)
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.template_choice import choose_template
from delift_pipeline.scoring.vllm_engine import refuse_without_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hide progress bars and tables of transformers, which would break our output and `--json`."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def refuse_without_bitsandbytes(feature: str, instead: str, field: str) -> None:
    """Refuse a feature where bitsandbytes is missing; `instead` says what works without it.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        why = f"{feature} needs bitsandbytes: pip install 'delift-pipeline[qlora]'; or {instead}"
        raise InputError(why, field=field)


def quantisation_config(load_in: str, dtype: "torch.dtype") -> Any:
    """Return how bitsandbytes loads linear weights in `4bit` (nf4, quantised twice) or `8bit`.

    Sources: Dettmers et al., arXiv 2305.14314 (nf4) and 2208.07339 (LLM.int8).
    """
    from transformers import BitsAndBytesConfig

    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


LONGEST_REASON = 300
"""The most characters of a library's error that our message repeats."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to score: in evaluation mode, on its device, without gradients.

    Attributes:
        fingerprint: The fingerprint of every score that the model gives.
        folder: The folder with the model's files.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    encoder: Encoder
    options: ModelOptions
    fingerprint: Fingerprint
    folder: Path

    @property
    def device(self) -> torch.device:
        """The device that reads the input ids."""
        return self.model.get_input_embeddings().weight.device  # pyright: ignore


def load_model(options: ModelOptions, *, shape_only: bool = False) -> LoadedModel:
    """Load a model, its tokenizer and its prompt template.

    With `shape_only` the model has the right shape and no weights.

    Raises:
        InputError: the model cannot be used; the message says why.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    fingerprint, folder = fingerprint_of(options), model_folder(options)
    encoder = load_encoder(options)
    model = (_load_shape if shape_only else _load_weights)(folder, options)
    rows = int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore
    # A special token beyond the model's rows does no harm if no prompt can contain it.
    unused = encoder.plain.special_ids - encoder.special_ids
    largest = max(set(encoder.tokenizer.get_vocab().values()) - unused)
    if largest >= rows:
        raise InputError(
            f"{options.model}: the tokenizer has ids up to {largest:,}, but the model has only "
            f"{rows:,} tokens, so they do not belong together. Use the tokenizer of this model",
            field="model",
        )
    return LoadedModel(model, encoder.tokenizer, encoder, options, fingerprint, folder)


def load_scorer(options: ModelOptions) -> LoadedModel:
    """Load a model to score with; for engine vllm without weights.

    vLLM loads the weights itself, and a second copy of a large model would not fit in memory.

    Raises:
        InputError: the model cannot be used, or vLLM is not installed and the options name it.
    """
    if options.engine == "vllm":
        refuse_without_vllm()
    return load_model(options, shape_only=options.engine == "vllm")


def load_encoder(options: ModelOptions) -> Encoder:
    """Load what turns records into tokens, without the model's weights.

    Raises:
        InputError: the model, its tokenizer or the template cannot be used; the message says why.
    """
    folder = model_folder(options)
    tokenizer = load_tokenizer(folder, options)
    window = resolve_window(options, read_config(folder))
    choice = choose_template(options, folder)
    return Encoder(tokenizer, choice.template, window, choice.chat, choice.notes)


def load_tokenizer(folder: Path, options: ModelOptions) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a model's folder.

    Raises:
        InputError: the folder has no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    with refuse_if_loading_fails(options, "the tokenizer"):
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code, local_files_only=True
        )


def resolve_device(device: str) -> torch.device:
    """Return a device by its name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        InputError: the name is that of a GPU and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"{device} is set, but this machine has no usable CUDA device; use cpu or auto",
            field="device",
        )
    return torch.device(device)


def _load_weights(folder: Path, options: ModelOptions) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    device, dtype = resolve_device(options.device), getattr(torch, options.dtype)
    placement: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    if options.load_in:
        refuse_without_bitsandbytes(f"load_in {options.load_in}", "remove load_in", "load_in")
        placement = {"device_map": {"": device}, **placement}
        placement["quantization_config"] = quantisation_config(options.load_in, dtype)
    try:
        with refuse_if_loading_fails(options, "the model"), silence_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=options.trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **placement,
            )  # pyright: ignore
        # transformers fills missing weights with random numbers: scores would mean nothing.
        if absent := [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())]:
            raise InputError(
                f"{options.model}: {len(absent)} weights are missing or have the wrong shape "
                f"(first: {absent[0]}). The files are incomplete, or the model is not a causal "
                "language model; download or copy the folder again, or choose another model",
                field="model",
            )
        # A device map or a quantiser has already placed the weights; they must not be moved.
        model = model if placement else model.to(device)
        model = model.eval().requires_grad_(False)
        if options.load_in:
            _check_quantised(model, options)
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        parameters = stored_parameters(weight_files(folder))
        gib = parameters * BYTES[options.dtype] / GIB
        raise DeliftError(
            f"{options.model}: {parameters:,} weights take {gib:,.1f} GiB in {options.dtype}, more "
            f"than device {options.device_map or options.device} has; use dtype bfloat16, load_in "
            "4bit, or device_map auto"
        ) from error
    return model


@contextmanager
def refuse_if_loading_fails(options: ModelOptions, what: str) -> Iterator[None]:
    """Turn any error that the libraries raise while they load into a refusal in one sentence.

    They raise many kinds of error for the same cause: files that do not fit together.

    Raises:
        InputError: loading failed for another reason than a lack of memory.
    """
    try:
        yield
    except DeliftError:
        raise
    except Exception as error:
        if is_memory_error(error):
            raise
        reason = _explain_loading_error(error)
        raise InputError(
            f"{options.model}: {what} could not be loaded: {reason}", field="model"
        ) from error


def _explain_loading_error(error: Exception) -> str:
    """Return the error in one line, with what to do if that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return "it comes with its own code; pass --trust-remote-code if you trust the author"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _check_quantised(model: "PreTrainedModel", options: ModelOptions) -> None:
    """Try one token: some layers load in few bits but cannot compute on the device."""
    device: Any = model.get_input_embeddings().weight.device
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device))
    except Exception as error:
        if is_memory_error(error):
            raise
        raise InputError(
            f"{options.model} does not work in {options.load_in} on device {device} "
            f"({_explain_loading_error(error)}); remove load_in, or use another device",
            field="load_in",
        ) from error


def _load_shape(folder: Path, options: ModelOptions) -> "PreTrainedModel":
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = options.trust_remote_code
    with refuse_if_loading_fails(options, "the model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust).eval()
