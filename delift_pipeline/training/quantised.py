"""A base model in 4 bits for QLoRA (Dettmers et al., arXiv 2305.14314)."""

import torch

from delift_pipeline.scoring.fingerprint import fingerprint_of
from delift_pipeline.scoring.model import (
    LoadedModel,
    load_encoder,
    load_tokenizer,
    refused_where_loading_fails,
    resolve_device,
)
from delift_pipeline.scoring.options import ModelOptions
from delift_pipeline.scoring.quantised import quantisation, refuse_without_bitsandbytes
from delift_pipeline.scoring.quiet import quiet_loading
from delift_pipeline.scoring.source import model_folder


def load_quantised(options: ModelOptions) -> LoadedModel:
    """Load a model with its linear weights in nf4, doubly quantised, computing in `dtype`.

    Raises:
        Refused: bitsandbytes is not installed, or the model cannot be used.
    """
    refuse_without_bitsandbytes("qlora", "use method lora", "method")
    from transformers import AutoModelForCausalLM

    folder, compute = model_folder(options), getattr(torch, options.dtype)
    with refused_where_loading_fails(options, "the model"), quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=compute,
            quantization_config=quantisation("4bit", compute),
            device_map={"": resolve_device(options.device)},
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
        )
    tokenizer = load_tokenizer(folder, options)
    return LoadedModel(
        model, tokenizer, load_encoder(options), options, fingerprint_of(options), folder
    )
