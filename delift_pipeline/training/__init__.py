"""Fine-tuning of a model on a subset, with LoRA or QLoRA adapters or on all weights."""
