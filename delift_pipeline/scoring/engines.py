"""The reference engine, and the choice of an engine by a short trial on the model."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.core.progress import Progress, SilentProgress
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.decoder import CachePath, is_shareable
from delift_pipeline.scoring.engine import Engine, Job, TokenScores
from delift_pipeline.scoring.packed_engine import PackedEngine, reason_against_packing
from delift_pipeline.scoring.transformers_engine import TransformersEngine
from delift_pipeline.scoring.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from delift_pipeline.scoring.model import LoadedModel


class NaiveEngine:
    """Scores each pair by a pass of its own: slow, and right for every causal language model."""

    name = "naive"

    def __init__(self, model: "PreTrainedModel", reason: str | None = None) -> None:
        """Wrap a model; `reason` says why no faster engine can be used."""
        self.model, self.reason = model, reason

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's name, and why it is used if the options name another one."""
        return {"engine": self.name, **({"why_not_shared": self.reason} if self.reason else {})}

    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, one pair at a time."""
        results = []
        for job in jobs:
            texts = ((records.prompt(row), records.answer(row)) for row in job.rows.tolist())
            scored = [answer_logprobs(self.model, job.prefix, *text) for text in texts]
            logprobs = np.concatenate([np.empty(0, dtype=np.float32), *scored])
            results.append(TokenScores(logprobs, records.answer_lengths[job.rows]))
        return results


@torch.inference_mode()
def answer_logprobs(
    model: "PreTrainedModel", prefix: np.ndarray, prompt: np.ndarray, answer: np.ndarray
) -> np.ndarray:
    """Return the log-probability of each answer token, float32 [answer tokens]."""
    ids = torch.from_numpy(np.concatenate([prefix, prompt, answer]).astype(np.int64))
    device = model.get_input_embeddings().weight.device  # pyright: ignore
    logits = model(input_ids=ids[None].to(device), use_cache=False).logits[0].float()  # pyright: ignore
    first = len(prefix) + len(prompt)
    predicted = torch.log_softmax(logits[first - 1 : -1], dim=-1).cpu()
    return predicted.gather(1, ids[first:, None])[:, 0].numpy()


_LENGTH_DEPENDENT = ("longrope", "dynamic")
_TRIAL_FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)
_vllm_engines: dict[int, VllmEngine] = {}


def engine_for(loaded: "LoadedModel", progress: Progress | None = None) -> Engine:
    """Return the engine that the options name, or the naive one if sharing a prefix would be wrong.

    A short trial compares the two. So a model whose cache, positions or head the fast path does not
    support is detected here and never scored wrongly.

    Raises:
        InputError: not even one pair fits the memory limit.
    """
    model, options, window = loaded.model, loaded.options, loaded.encoder.window
    if options.engine == "naive":
        return NaiveEngine(model)
    if options.engine == "vllm":
        # vLLM reserves its memory when it starts, so the baseline and the pairs share one engine.
        # It is closed when the model is no longer used.
        key = id(loaded)
        if key not in _vllm_engines:
            _vllm_engines[key] = VllmEngine(loaded.folder, options, window)
            weakref.finalize(loaded, lambda: _vllm_engines.pop(key).close())
        return _vllm_engines[key]
    reason = "its weights are quantised" if getattr(model, "is_quantized", False) else None
    sizes: dict[str, Any] = {
        "window": window,
        "batch_tokens": options.batch_tokens,
        "memory_limit": options.memory_limit,
        "in_flight": options.in_flight,
    }
    if not reason and reason_against_packing(model, window) is None:
        # On a machine without a compiler the layers run as they are.
        for compiled in (True, False):
            engine = PackedEngine(model, compiled=compiled, **sizes)
            refusal = reason_against_sharing(engine, model, window)
            if refusal is None:
                return engine
            tried = "packed and compiled" if compiled else "packed"
            line = f"{options.model}: its pairs are not scored {tried}, because {refusal}"
            (progress or SilentProgress()).say(line)
    # The first try runs layer by layer, the second with the model's own cache.
    for _ in range(2):
        engine = TransformersEngine(model, why_not_layers=reason, **sizes)
        reason = reason_against_sharing(engine, model, window)
        if reason is None:
            return engine
        if isinstance(engine.path, CachePath):
            break
    line = f"{options.model}: {reason}; every pair is scored by a forward pass of its own"
    (progress or SilentProgress()).say(line)
    return NaiveEngine(model, reason=reason)


def reason_against_sharing(
    engine: TransformersEngine | PackedEngine, model: "PreTrainedModel", window: int
) -> str | None:
    """Return why several targets cannot share a prefix's cache, or None if they can."""
    # Some rotary embeddings change once a sequence is longer than the model was trained on.
    config: Any = engine.decoder.config
    rope = getattr(config, "rope_parameters", None) or {}
    own = getattr(config, "original_max_position_embeddings", None) or 0
    for kind in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        trained = kind.get("original_max_position_embeddings") or own
        if kind.get("rope_type") in _LENGTH_DEPENDENT and window > trained:
            return "its positions depend on the length of the whole sequence"
    records = _trial_records(int(engine.decoder.config.vocab_size))
    job = Job(records.prefix(0), np.asarray([1, 2]))
    try:
        if isinstance(engine, TransformersEngine) and isinstance(engine.path, CachePath):
            with torch.inference_mode():
                cache = engine.prefill(job.prefix)
            if cache is None or not is_shareable(cache):
                return "its cache cannot be shared"
        # The job runs twice: if a pass has changed the shared cache, the second result is wrong.
        logprobs = engine.score(records, [job, job])[1].logprobs
    except _TRIAL_FAULTS as error:
        return f"its cache cannot be shared ({type(error).__name__})"
    expected = NaiveEngine(model).score(records, [job])[0].logprobs
    bound = 1e-3 if model.dtype == torch.float32 else 0.25
    if not np.allclose(logprobs, expected, atol=bound):
        return "sharing its cache changes its log-probabilities"
    return None


def _trial_records(vocabulary: int) -> EncodedRecords:
    """Return three artificial records of 13, 9 and 6 tokens."""
    ids = (np.arange(28) * 7919 % max(vocabulary - 8, 1) + 4).astype(np.int32)
    starts = np.asarray([0, 13, 22, 28], dtype=np.int64)
    return EncodedRecords(
        ids=("a", "b", "c"),
        head=ids[:1],
        start=ids[:1],
        target_tokens=ids,
        target_starts=starts,
        prompt_lengths=np.asarray([6, 4, 3], dtype=np.int32),
        demonstration_tokens=ids,
        demonstration_starts=starts,
        unscorable={},
        cuts={},
    )
