"""What evaluation asks of a model, and who answers: transformers, or vLLM.

transformers reads the model that was loaded; vLLM loads the weights itself and puts a LoRA adapter
on them. Both take the same tokens, and both are asked for greedy answers by default.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.evaluation.generate import Answer, generated_answers
from delift_pipeline.evaluation.losses import token_losses
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.progress import Progress
from delift_pipeline.scoring.model import LoadedModel, load_model, load_scorer
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.training.batches import Example


class EvaluationEngine(Protocol):
    """Reads a model's losses and answers."""

    name: str

    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = "answer loss"
    ) -> list[np.ndarray]:
        """Negative log-probability of each answer token, nats, `[answer tokens]` an example."""
        ...

    def answers(
        self,
        prompts: Sequence[np.ndarray],
        stops: Sequence[int],
        max_new_tokens: int,
        progress: Progress,
    ) -> list[Answer]:
        """The continuation of each prompt up to a stop token, at most so many tokens."""
        ...


@dataclass(frozen=True)
class VllmModel(LoadedModel):
    """A model that vLLM is to load: its tokenizer and its shape, without weights.

    Attributes:
        adapter: A PEFT LoRA folder that is put on it, or None.
    """

    adapter: Path | None = None


class TransformersAnswers:
    """The model itself, in batches of near lengths."""

    name = "transformers"

    def __init__(self, loaded: LoadedModel, options: EvaluationOptions) -> None:
        self._model, self._options = loaded.model, options

    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = "answer loss"
    ) -> list[np.ndarray]:
        """Negative log-probability of each answer token, nats, `[answer tokens]` an example."""
        return token_losses(self._model, examples, self._options.batch_size, progress, title)

    def answers(
        self,
        prompts: Sequence[np.ndarray],
        stops: Sequence[int],
        max_new_tokens: int,
        progress: Progress,
    ) -> list[Answer]:
        """The continuation of each prompt up to a stop token, at most so many tokens."""
        return generated_answers(
            self._model,
            prompts,
            stops,
            max_new_tokens,
            self._options.batch_size,
            progress,
            self._options.generation,
            self._options.seed,
        )


@contextmanager
def evaluation_engine(
    loaded: LoadedModel, options: EvaluationOptions, longest: int
) -> Iterator[EvaluationEngine]:
    """The engine of a loaded model, for as long as it is needed.

    Args:
        loaded: As `load_trained` gives it.
        options: How it is measured.
        longest: Tokens of the longest sequence, its prompt and its answer; vLLM reserves for it.

    Raises:
        Refused: vLLM is not installed, or cannot use the device, the model or the adapter.
    """
    if not isinstance(loaded, VllmModel):
        yield TransformersAnswers(loaded, options)
        return
    from delift_pipeline.evaluation.vllm_answers import VllmAnswers
    from delift_pipeline.scoring.vllm_engine import VllmEngine

    with closing(
        VllmEngine(loaded.folder, loaded.options, longest, adapter=loaded.adapter)
    ) as engine:
        yield VllmAnswers(engine, options)


def load_trained(
    model_options: ModelOptions,
    adapter: Path | None,
    options: EvaluationOptions | None = None,
) -> LoadedModel:
    """The base model, the base model under a PEFT adapter, or a whole trained model.

    A QLoRA adapter is put on the base in the asked dtype, without quantisation. Where vLLM is the
    engine, no weights are loaded yet.

    Args:
        model_options: The base model.
        adapter: A PEFT folder for it, a folder with a whole trained model, or None.
        options: Their `engine` is used; None, or None there, takes the base model's.

    Raises:
        Refused: `adapter` is neither a PEFT nor a model folder, or the engine cannot be used.
    """
    asked = _with_engine(model_options, options)
    load = _for_vllm if asked.engine == "vllm" else load_model
    if adapter is None:
        return load(asked)
    if (adapter / "adapter_config.json").is_file():
        return _adapted(load(asked), adapter)
    if (adapter / "config.json").is_file():
        return load(asked.model_copy(update={"model": str(adapter), "revision": None}))
    raise Refused(Fault(f"{adapter.name} holds neither an adapter nor a model", field="adapter"))


def _with_engine(model: ModelOptions, options: EvaluationOptions | None) -> ModelOptions:
    if options is None or options.engine is None or options.engine == model.engine:
        return model
    return read_options(model.model_dump() | {"engine": options.engine})


def _for_vllm(options: ModelOptions) -> VllmModel:
    return VllmModel(**vars(load_scorer(options)))


def _adapted(loaded: LoadedModel, adapter: Path) -> LoadedModel:
    if isinstance(loaded, VllmModel):
        return replace(loaded, adapter=adapter)
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(loaded.model, str(adapter), is_trainable=False)
    return replace(loaded, model=model.eval())
