"""The transformers engine: a demonstration is read once for all its targets.

Batch sizes follow from how much memory scoring may take in addition to the loaded model. We counted
the bytes of the tensors that exist at the same moment in `layers` and `decoder` by hand and rounded
up; tests check that real peaks stay below the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.core.errors import DeliftError, InputError, is_memory_error
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.batches import Batch, Targets
from delift_pipeline.scoring.decoder import CachePath, Decoder
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.layers import LayerPath, reason_against_layers
from delift_pipeline.scoring.model_files import GIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_LIMIT_GIB = 1.5
"""The default limit on a CPU, in GiB in addition to the loaded model."""
GPU_SHARE = 0.8
"""The default limit on a GPU, as a share of its free memory."""
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_NARROW = 4096
"""On a CPU for a narrow model, of which this many tokens still fit the processor's cache."""
NARROW_LAYER = 256
"""The largest width of any layer in a narrow model."""
BATCH_TOKENS_GPU = 65536
LARGEST_WINDOW = 2048
RESERVE = 80 << 20
"""Bytes for buffers inside the libraries."""
SAFETY = 1.1
# How many numbers a chunk of logits has: they fit a CPU's cache, and they keep a GPU busy.
_LOGITS_CPU, _LOGITS_GPU = 1 << 21, 1 << 26
_LEAST_LOGIT_ROWS = 128


@dataclass(frozen=True)
class MemoryPlan:
    """How much may be scored at a time under a memory limit.

    Attributes:
        limit: Bytes in addition to the loaded model.
        tokens: Most target tokens in one batch, padding included.
        keys: Most tokens in one batch if the prefix is counted with every target; None: no bound.
        longest_prefix: Tokens of the longest prefix that the plan allows for.
        logit_rows: For how many answer tokens logits are computed at a time.
        spare_bytes: Bytes for batches that are reused.
    """

    limit: int
    tokens: int
    keys: int | None
    longest_prefix: int
    logit_rows: int
    spare_bytes: int


def plan_memory(
    decoder: Decoder,
    *,
    shared: bool,
    window: int | None = None,
    batch_tokens: int | None = None,
    memory_limit: float | None = None,
    in_flight: int = 1,
) -> MemoryPlan:
    """Plan how much to score at a time; the defaults are those of `ModelOptions`.

    With `shared` all targets read one copy of a prefix, else each has its own. `in_flight` prefixes
    are in memory at a time. Without a limit of the user a single pair may take more than the
    default limit.

    Raises:
        InputError: not even one pair fits the user's limit.
    """
    config: Any = decoder.config
    gpu, itemsize = decoder.device.type == "cuda", decoder.model.dtype.itemsize
    # Models without attention have no heads; the trial of `engine_for` refuses their cache later.
    hidden, heads = int(config.hidden_size), getattr(config, "num_attention_heads", None) or 1
    head_width = getattr(config, "head_dim", None) or hidden // heads
    key_width = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    query_width = heads * head_width
    mlp_widths = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim"))
    mlp_width = next(filter(None, mlp_widths), 4 * hidden)
    vocabulary = int(decoder.head.weight.shape[0])  # pyright: ignore
    model_window = int(getattr(config, "max_position_embeddings", None) or LARGEST_WINDOW)
    window = window or min(model_window, LARGEST_WINDOW)
    limit = int(GIB * (memory_limit or CPU_LIMIT_GIB))
    if gpu and not memory_limit:
        limit = int(GPU_SHARE * torch.cuda.mem_get_info(decoder.device)[0])
    longest_prefix, longest_target = window // 2, window - window // 2

    # Bytes of one row of logits: in the model's format, in float32, and their logarithms.
    row_bytes = vocabulary * (itemsize + 8.0)
    logit_rows = max((_LOGITS_GPU if gpu else _LOGITS_CPU) // vocabulary, _LEAST_LOGIT_ROWS)
    logit_rows = max(min(logit_rows, int(limit / 4 / row_bytes)), 1)
    # Bytes of one target token in the part of a layer that takes most: attention or the MLP.
    layer_width = max(9 * query_width + 6 * key_width, 4 * mlp_width)
    token_bytes = itemsize * (6 * hidden + layer_width) + 12 * hidden
    # On a GPU no kernel takes a mask, so the last layer stores its scores; on a CPU, the mask.
    score_bytes = 12 * heads * (window // 2) if gpu else 140 * heads
    # Without sharing: the mask over prefix and target, as booleans and as numbers.
    token_bytes += score_bytes if shared else (1 + itemsize) * window
    token_bytes *= SAFETY
    # Bytes of one prefix token: its keys and values in all layers, and once more in the layer
    # that reads them.
    cache_bytes = 2 * itemsize * config.num_hidden_layers * key_width
    key_bytes = cache_bytes + 4 * itemsize * query_width
    prefix_bytes = key_bytes + (in_flight - 1) * cache_bytes
    fixed = RESERVE + logit_rows * row_bytes
    fixed += longest_prefix * (prefix_bytes if shared else key_bytes)
    pair_bytes = longest_target * token_bytes + (0 if shared else window * key_bytes)
    if memory_limit and fixed + pair_bytes > limit:
        raise InputError(
            f"{memory_limit:g} GiB is less than the {(fixed + pair_bytes) / GIB:.2f} GiB that one "
            f"pair of {window:,} tokens can take; raise it, or use a smaller window",
            field="memory_limit",
        )
    room = max(limit - fixed, pair_bytes)
    narrow = max(hidden, query_width, mlp_width) <= NARROW_LAYER
    on_cpu = BATCH_TOKENS_NARROW if narrow else BATCH_TOKENS_CPU
    most_tokens = batch_tokens or (BATCH_TOKENS_GPU if gpu else on_cpu)
    if shared:
        tokens = min(most_tokens, int(room / token_bytes))
        spare = max(int(room - tokens * token_bytes) // 2, 0)
        return MemoryPlan(limit, tokens, None, longest_prefix, logit_rows, spare)
    # Half of the room is for the targets. The copies of their prefix get what the targets leave.
    tokens = max(min(most_tokens, int(room / 2 / token_bytes)), 1)
    keys = max(int((room - tokens * token_bytes) / key_bytes), window)
    return MemoryPlan(limit, tokens, keys, longest_prefix, logit_rows, spare_bytes=0)


IN_FLIGHT_GPU = 4
"""How many demonstrations share batches on a GPU; the targets of one alone would not fill it."""


class TransformersEngine:
    """Scores batches of targets of similar length with the keys and values of one prefix.

    Logits are computed at answer positions only, in chunks. Known model families run layer by layer
    (`layers`), the others with a cache that is expanded for every batch (`decoder`). Batch sizes
    follow a memory plan (`plan_memory`).
    """

    name = "transformers"

    def __init__(
        self,
        model: "PreTrainedModel",
        batch_tokens: int | None = None,
        *,
        window: int | None = None,
        why_not_layers: str | None = None,
        memory_limit: float | None = None,
        in_flight: int | None = None,
    ) -> None:
        """Wrap a causal language model whose cache can be shared (see `engines.engine_for`).

        Sliding attention that is at least as wide as the window counts as full attention.
        `why_not_layers` is a reason not to run layer by layer; then `in_flight` is 1. The other
        arguments are those of `ModelOptions`.

        Raises:
            InputError: not even one pair fits the memory limit.
        """
        # Once glibc has freed a block this large, it keeps freed memory for the next pass. Fresh
        # pages would take a tenth of the time (mallopt(3), M_MMAP_THRESHOLD).
        torch.empty(31 << 20, dtype=torch.uint8)
        self.decoder = Decoder(model)
        self.why_not_layers = why_not_layers or reason_against_layers(self.decoder, window)
        shared = self.why_not_layers is None
        own = IN_FLIGHT_GPU if self.decoder.device.type == "cuda" else 1
        self.in_flight = (in_flight or own) if shared else 1
        self.plan = plan_memory(
            self.decoder,
            shared=shared,
            window=window,
            batch_tokens=batch_tokens,
            memory_limit=memory_limit,
            in_flight=self.in_flight,
        )
        self.decoder.logit_rows = self.plan.logit_rows
        self.path: LayerPath | CachePath = (LayerPath if shared else CachePath)(self.decoder)
        # All demonstrations of a dense block have the same targets, so batches are reused.
        self._targets: Targets | None = None
        self._batches: dict[bytes, tuple[Batch, Any]] = {}
        self._spare_bytes = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide the batches, and why layers are not run one by one if so."""
        settings: dict[str, Any] = {"engine": self.name, "path": self.path.name}
        settings |= {"batch_tokens": self.plan.tokens, "in_flight": self.in_flight}
        settings |= {} if self.plan.keys is None else {"batch_keys": self.plan.keys}
        return settings | ({"why_not_layers": self.why_not_layers} if self.why_not_layers else {})

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs; each prefix is read once."""
        size = self.in_flight
        starts = range(0, len(jobs), size)
        return [one for at in starts for one in self._score_group(records, jobs[at : at + size])]

    def _score_group(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        targets = Targets(records, [job.rows for job in jobs])
        result = np.empty(int(records.answer_lengths[targets.rows].sum()), dtype=np.float32)
        if self._targets is None or not targets.equals(self._targets):
            self._targets, self._batches, self._spare_bytes = targets, {}, self.plan.spare_bytes
        prefixes = [self.prefill(job.prefix) for job in jobs]
        longest_prefix = max(self.plan.longest_prefix, *(len(job.prefix) for job in jobs))
        halved = sum(
            self._score_batch(result, targets, chosen, prefixes)
            for chosen in targets.batch_places(self.plan.tokens, self.plan.keys, longest_prefix)
        )
        lengths = [records.answer_lengths[job.rows] for job in jobs]
        pieces = np.split(result, np.cumsum([own.sum() for own in lengths])[:-1])
        # Batches that several jobs share are counted for the first of them.
        counts = [halved, *[0] * (len(jobs) - 1)]
        return [TokenScores(*each) for each in zip(pieces, lengths, counts, strict=True)]

    def _score_batch(
        self, result: np.ndarray, targets: Targets, chosen: np.ndarray, prefixes: list[Any]
    ) -> int:
        """Write the scores of the targets `chosen` into `result`; return how many were halved."""
        try:
            batch, ready = self._prepare_batch(targets, chosen)
            result[batch.places] = self.path.logprobs(ready, prefixes).cpu().numpy()
            return 0
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if len(chosen) < 2:
                raise pair_too_large_error() from error
        # Not inside the handler: while its error exists, the tensors of the failed pass exist too.
        self._batches, self._spare_bytes = {}, 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = np.split(chosen, [len(chosen) // 2])
        return 1 + sum(self._score_batch(result, targets, part, prefixes) for part in parts)

    def _prepare_batch(self, targets: Targets, chosen: np.ndarray) -> tuple[Batch, Any]:
        """Return the batch of some targets and its prepared form; reuse both if memory allows."""
        key = chosen.tobytes()
        if key not in self._batches:
            batch = targets.make_batch(chosen)
            entry = (batch, self.path.prepare(batch))
            size = batch.nbytes + entry[1].nbytes
            if size > self._spare_bytes:
                return entry
            self._spare_bytes -= size
            self._batches[key] = entry
        return self._batches[key]

    def prefill(self, prefix: np.ndarray) -> Any:
        """Compute the keys and values of a prefix; None for an empty one.

        Call it under `torch.inference_mode`.

        Raises:
            DeliftError: they do not fit in memory.
        """
        ids = torch.from_numpy(prefix.astype(np.int64)).to(self.decoder.device)
        try:
            return self.path.prefill(ids) if len(prefix) else None
        except (RuntimeError, MemoryError) as error:
            if is_memory_error(error):
                raise pair_too_large_error() from error
            raise


def pair_too_large_error() -> DeliftError:
    """The error for a pair that alone takes more memory than there is."""
    return DeliftError(
        "a single pair does not fit in memory; use a smaller window, dtype bfloat16 or a device "
        "with more memory"
    )
