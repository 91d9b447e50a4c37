"""The recipe of the demo model: its size, its optimizers and its schedules."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from delift_pipeline.demo import words as w
from tools.demo_model.tokenizer import END, MAX_TOKENS, PAD, START, token_ids

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Recipe:
    """The arguments of a run.

    Attributes:
        seed: Of weights and data.
        steps: Optimizer steps.
        learning_rate: Of both optimizers, after warm-up.
        warm_up: Steps of linear warm-up; constant to half of the steps, then cosine to 2 %.
        hidden, layers, heads, mlp: The size of the model.
        early: Rows and tokens a row in the first half.
        late: Rows and tokens a row in the second half.
    """

    seed: int = 1
    steps: int = 2500
    learning_rate: float = 8e-3
    warm_up: int = 40
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    mlp: int = 192
    early: tuple[int, int] = (64, 48)
    late: tuple[int, int] = (32, 96)


SMALL = Recipe(steps=1500, hidden=32, layers=2, mlp=96)
"""Of the smaller scorer that `delift bench quality --experiment transfer` reads."""


def build_model(recipe: Recipe) -> "LlamaForCausalLM":
    """Make the untrained model; the second word of a concept starts near its first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = token_ids()
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ids),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=True,
            pad_token_id=ids[PAD],
            bos_token_id=ids[START],
            eos_token_id=ids[END],
        )
    )
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        for first, second in w.SYNONYMS.items():
            table[ids[second]] = 0.8 * table[ids[first]] + 0.6 * table[ids[second]]
    return model


def build_optimizers(
    model: "LlamaForCausalLM", learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices, AdamW for the embedding and the norms."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            inner,
            lr=learning_rate,
            weight_decay=0.02,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(outer, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate of a step, counted from 0."""
    done = step / recipe.steps
    decay = 1.0 if done < 0.5 else max(0.02, 0.5 * (1 + math.cos(2 * math.pi * (done - 0.5))))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warm_up) * decay


def repeat_share_at(step: int, recipe: Recipe) -> float:
    """The share of repeat rows in a step's batch: many at first, few when copying is learnt."""
    done = step / recipe.steps
    return 0.5 if done < 0.2 else 0.2 if done < 0.4 else 0.02
