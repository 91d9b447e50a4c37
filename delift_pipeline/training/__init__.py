"""Fine-tuning on a subset: LoRA and full."""
