"""Training options that take a moment."""

import pytest

from delift_pipeline.training.options import TrainingOptions


@pytest.fixture
def quick() -> TrainingOptions:
    """A few steps of LoRA."""
    return TrainingOptions(
        rank=4, alpha=8, steps=6, batch_size=5, warmup_steps=2, learning_rate=5e-3
    )
