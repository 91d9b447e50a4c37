"""The engines that compute losses and generate answers for evaluation: transformers and vLLM.

The transformers engine uses a loaded model. vLLM loads the weights itself and adds a LoRA adapter.
Both read the same tokens, and both generate greedy answers by default.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from delift_pipeline.core.errors import InputError
from delift_pipeline.core.progress import Progress
from delift_pipeline.evaluation.options import EvaluationOptions
from delift_pipeline.scoring.batches import pad_sequences
from delift_pipeline.scoring.model import LoadedModel, load_model, load_scorer
from delift_pipeline.scoring.options import ModelOptions, read_options
from delift_pipeline.scoring.template_choice import with_chosen_template
from delift_pipeline.training.batches import Example, answer_losses, collate, unwrap_model

if TYPE_CHECKING:
    from delift_pipeline.scoring.vllm_engine import VllmEngine

LOSS_TITLE = "answer loss"
PAPER_NEW_TOKENS = 150
PAPER_SAMPLING: dict[str, Any] = {"temperature": 0.2, "min_p": 0.1, "top_k": 0, "top_p": 1.0}
"""How the paper samples answers. transformers and vLLM use the same option names."""
RECORDS_PER_CALL = 256
"""How many records vLLM gets in one call; progress is shown after each call."""


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        tokens: Token ids before the end-of-text token.
        finished: Whether the answer ended with an end-of-text token.
    """

    tokens: list[int]
    finished: bool


class EvaluationEngine(Protocol):
    """Computes a model's losses and generates its answers."""

    name: str

    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = LOSS_TITLE
    ) -> list[np.ndarray]:
        """Return each example's negative log-probabilities, nats, `[answer tokens]`."""
        ...

    def answers(
        self, prompts: Sequence[np.ndarray], stops: Sequence[int], longest: int, progress: Progress
    ) -> list[Answer]:
        """Generate an answer to each prompt, up to a stop token or `longest` tokens."""
        ...


@dataclass(frozen=True)
class VllmModel(LoadedModel):
    """A model that vLLM will load: its tokenizer and its shape, without weights.

    Attributes:
        adapter: The folder of a PEFT LoRA adapter that vLLM adds, or None.
    """

    adapter: Path | None = None


class TransformersEvaluation(EvaluationEngine):
    """Evaluates a causal language model, with or without adapters, in batches of similar length."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module, options: EvaluationOptions) -> None:
        self._model, self._options = model, options
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = LOSS_TITLE
    ) -> list[np.ndarray]:
        """Return losses from forward passes over examples that are padded on the right."""
        losses_by_place: dict[int, np.ndarray] = {}
        with progress.track(title, len(examples), "records") as meter:
            for chosen in self._batches(examples):
                batch = collate([examples[i] for i in chosen]).to(self._device)
                losses = answer_losses(self._model, batch).double().cpu().numpy()
                ends = np.cumsum([len(examples[i].answer) for i in chosen])
                losses_by_place |= dict(zip(chosen, np.split(losses, ends[:-1]), strict=True))
                meter.advance(len(chosen))
        return [losses_by_place[i] for i in range(len(examples))]

    @torch.inference_mode()
    def answers(
        self, prompts: Sequence[np.ndarray], stops: Sequence[int], longest: int, progress: Progress
    ) -> list[Answer]:
        """Generate token by token. Sampled answers depend on the seed and on the batch size.

        The caller's random state is restored.
        """
        from transformers import GenerationConfig

        greedy = self._options.generation == "greedy"
        # Padding is masked before a prompt, and cut off after an end, so any token is right.
        padding = stops[0] if stops else 0
        config = GenerationConfig(
            **(
                {"do_sample": False, "num_beams": 1}
                if greedy
                else {"do_sample": True, **PAPER_SAMPLING}
            ),
            max_new_tokens=longest,
            eos_token_id=list(stops) or None,
            pad_token_id=padding,
        )
        # `generate` takes every option that `config` lacks from the model's own configuration.
        # Many models set a repetition penalty or a temperature there, so it is replaced.
        owner = cast(Any, unwrap_model(self._model))
        model_config, owner.generation_config = owner.generation_config, config
        answers_by_place: dict[int, Answer] = {}
        try:
            with (
                torch.random.fork_rng(),
                progress.track("answer", len(prompts), "records") as meter,
            ):
                torch.manual_seed(self._options.seed)
                for chosen in self._batches(prompts):
                    ids, mask = pad_sequences([prompts[i] for i in chosen], padding, left=True)
                    rows = cast(Any, self._model).generate(
                        input_ids=ids.to(self._device),
                        attention_mask=mask.to(self._device),
                        generation_config=config,
                    )
                    for i, row in zip(chosen, rows[:, ids.shape[1] :].tolist(), strict=True):
                        answers_by_place[i] = cut_at_stop(row, stops)
                    meter.advance(len(chosen))
        finally:
            owner.generation_config = model_config
        return [answers_by_place[i] for i in range(len(prompts))]

    def _batches(self, items: Sequence[Any]) -> Iterator[list[int]]:
        """Return batches of the items' indices, shortest items first."""
        order = sorted(range(len(items)), key=lambda i: len(items[i]))
        size = self._options.batch_size
        return (order[start : start + size] for start in range(0, len(order), size))


class VllmEvaluation(EvaluationEngine):
    """Evaluates a model inside vLLM, with or without an adapter.

    vLLM chooses its own batches. Answers do not depend on them: a greedy answer needs no random
    state, and each sampled answer has its own.
    """

    name = "vllm"

    def __init__(self, engine: "VllmEngine", options: EvaluationOptions) -> None:
        self._engine, self._options = engine, options

    def losses(
        self, examples: Sequence[Example], progress: Progress, title: str = LOSS_TITLE
    ) -> list[np.ndarray]:
        """Return losses from vLLM's log-probabilities of prompt tokens."""
        all_losses: list[np.ndarray] = []
        with progress.track(title, len(examples), "records") as meter:
            for start in range(0, len(examples), RECORDS_PER_CALL):
                part = examples[start : start + RECORDS_PER_CALL]
                ids = [np.concatenate([one.prompt, one.answer]).tolist() for one in part]
                logprobs = self._engine.answer_logprobs(ids, [len(one.answer) for one in part])
                all_losses += [-one.astype(np.float64) for one in logprobs]
                meter.advance(len(part))
        return all_losses

    def answers(
        self, prompts: Sequence[np.ndarray], stops: Sequence[int], longest: int, progress: Progress
    ) -> list[Answer]:
        """Generate answers with vLLM's sampler."""
        # The model's own end-of-text tokens and sampling settings are not used.
        sampling = {"max_tokens": longest, "stop_token_ids": list(stops), "ignore_eos": True}
        samplings = [sampling | {"temperature": 0.0}] * len(prompts)
        if self._options.generation != "greedy":
            states = (np.random.SeedSequence([self._options.seed, i]) for i in range(len(prompts)))
            samplings = [
                sampling | PAPER_SAMPLING | {"seed": int(s.generate_state(1)[0])} for s in states
            ]
        all_answers: list[Answer] = []
        with progress.track("answer", len(prompts), "records") as meter:
            for start in range(0, len(prompts), RECORDS_PER_CALL):
                part = slice(start, start + RECORDS_PER_CALL)
                ids = [prompt.tolist() for prompt in prompts[part]]
                tokens = self._engine.continuations(ids, samplings[part])
                all_answers += [cut_at_stop(one, stops) for one in tokens]
                meter.advance(len(ids))
        return all_answers


@contextmanager
def evaluation_engine(
    loaded: LoadedModel, options: EvaluationOptions, longest: int
) -> Iterator[EvaluationEngine]:
    """Open the engine of a loaded model, and close it after the block.

    `longest` is the largest number of tokens of a prompt and its answer, for which vLLM reserves
    memory.

    Raises:
        InputError: vLLM is not installed, or cannot use the device, the model or the adapter.
    """
    if not isinstance(loaded, VllmModel):
        yield TransformersEvaluation(loaded.model, options)
        return
    from delift_pipeline.scoring.vllm_engine import VllmEngine

    with closing(
        VllmEngine(loaded.folder, loaded.options, longest, adapter=loaded.adapter)
    ) as engine:
        yield VllmEvaluation(engine, options)


def load_for_evaluation(
    model_options: ModelOptions, adapter: Path | None, options: EvaluationOptions
) -> LoadedModel:
    """Load the base model, the base model with a PEFT adapter, or a whole trained model.

    A QLoRA adapter is added to the base in the requested dtype, without quantisation. If vLLM is
    the engine, no weights are loaded yet.

    `adapter` is a PEFT folder for the base model, a folder with a whole trained model, or None.
    If `options.engine` is None, the base model's engine is used.

    Raises:
        InputError: `adapter` is neither a PEFT nor a model folder, or the engine cannot be used.
    """
    requested = model_options
    if options.engine not in (None, requested.engine):
        requested = read_options(requested.model_dump() | {"engine": options.engine})
    is_peft = adapter is not None and (adapter / "adapter_config.json").is_file()
    if adapter is not None and not is_peft:
        if not (adapter / "config.json").is_file():
            reason = f"{adapter.name} has neither adapter_config.json nor config.json, so it is "
            reason += "neither an adapter nor a model. Give the folder that training wrote"
            raise InputError(reason, field="adapter")
        # The base model decides the template, and not the files that training wrote.
        own = {"model": str(adapter), "revision": None}
        requested = with_chosen_template(requested).model_copy(update=own)
    if requested.engine == "vllm":
        return VllmModel(**vars(load_scorer(requested)), adapter=adapter if is_peft else None)
    loaded = load_model(requested)
    if not is_peft:
        return loaded
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(loaded.model, str(adapter), is_trainable=False)
    return replace(loaded, model=model.eval())


def cut_at_stop(tokens: list[int], stops: Sequence[int]) -> Answer:
    """Return the tokens before the first stop token as an answer."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    return Answer(tokens[:end], finished=end is not None)
