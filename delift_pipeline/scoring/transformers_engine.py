"""The transformers engine: a demonstration is read once and serves all its targets.

How much is scored at a time follows from how much memory it may take over the loaded model. The
sizes are those of the tensors that live at the same moment, counted by hand from the passes in
`layers` and `decoder` and rounded up; the tests hold real peaks below them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from delift_pipeline.core.errors import DeliftError, Refused, is_memory_error
from delift_pipeline.prompts.encode import EncodedRecords
from delift_pipeline.scoring.batches import Batch, Targets
from delift_pipeline.scoring.decoder import CachePath, Decoder
from delift_pipeline.scoring.engine import Job, TokenScores
from delift_pipeline.scoring.layers import LayerPath, why_not_layered
from delift_pipeline.scoring.model_files import GIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIMIT_CPU = 1.5
"""GiB over the loaded model where no limit is given."""
SHARE_OF_GPU = 0.8
"""Of the memory that is free on a GPU where no limit is given."""
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_NARROW = 4096
"""On a CPU for a model of which this many tokens still stay in its cache."""
NARROW_LAYER = 256
"""Widest array of such a model's layers, in numbers a token."""
BATCH_TOKENS_GPU = 65536
LARGEST_WINDOW = 2048
RESERVE = 80 << 20
"""For buffers inside the libraries."""
SAFETY = 1.1
# A chunk of logits holds this many numbers: few enough for a CPU's cache, many enough for a GPU.
_LOGITS_CPU, _LOGITS_GPU = 1 << 21, 1 << 26
_LEAST_LOGIT_ROWS = 128


@dataclass(frozen=True)
class MemoryPlan:
    """What a limit allows.

    Attributes:
        limit: Bytes over the loaded model.
        tokens: Most target tokens, padding included, in one batch.
        keys: Most tokens, a prefix counted once for each target, in one batch; None for no bound.
        reach: Longest prefix that is planned for.
        logit_rows: Answer tokens whose logits are made at a time.
        spare: Bytes for batches that are kept.
    """

    limit: int
    tokens: int
    keys: int | None
    reach: int
    logit_rows: int
    spare: int


def plan_memory(
    decoder: Decoder,
    *,
    shared: bool,
    window: int | None = None,
    batch_tokens: int | None = None,
    memory_limit: float | None = None,
    in_flight: int = 1,
) -> MemoryPlan:
    """What to score at a time; None takes what `ModelOptions` says, and more for a single pair.

    With `shared` a prefix is kept once for all targets, else it is copied for each. `in_flight`
    prefixes are kept at a time.

    Raises:
        Refused: not even one pair fits the limit that was given.
    """
    config: Any = decoder.config
    gpu, itemsize = decoder.device.type == "cuda", decoder.model.dtype.itemsize
    # Models without attention have no heads; their cache is found not to be shareable later.
    hidden, heads = int(config.hidden_size), getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or hidden // heads
    kept, inner = (getattr(config, "num_key_value_heads", None) or heads) * width, heads * width
    sizes = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim"))
    middle = next(filter(None, sizes), 4 * hidden)
    vocabulary = int(decoder.head.weight.shape[0])  # pyright: ignore
    own = int(getattr(config, "max_position_embeddings", None) or LARGEST_WINDOW)
    window = window or min(own, LARGEST_WINDOW)
    limit = int(GIB * (memory_limit or LIMIT_CPU))
    if gpu and not memory_limit:
        limit = int(SHARE_OF_GPU * torch.cuda.mem_get_info(decoder.device)[0])
    reach, longest = window // 2, window - window // 2

    # A chunk of logits: as they come, in float32, and their logarithms.
    logits = vocabulary * (itemsize + 8.0)
    rows = max((_LOGITS_GPU if gpu else _LOGITS_CPU) // vocabulary, _LEAST_LOGIT_ROWS)
    rows = max(min(rows, int(limit / 4 / logits)), 1)
    # One target token in the layer that takes most.
    token = itemsize * (6 * hidden + max(9 * inner + 6 * kept, 4 * middle)) + 12 * hidden
    # Scores that are written down in the last layer: where no kernel takes a mask, or the mask.
    written = 12 * heads * (window // 2) if gpu else 140 * heads
    # Without sharing the mask over prefix and target, as booleans and as numbers.
    token += written if shared else (1 + itemsize) * window
    each = SAFETY * token
    # One token of a prefix in all layers, and in the layer that is read.
    key = 2 * itemsize * (config.num_hidden_layers * kept + 2 * inner)
    prefixes = key + 2 * itemsize * (in_flight - 1) * config.num_hidden_layers * kept
    fixed = RESERVE + rows * logits + reach * (prefixes if shared else key)
    one = longest * each + (0 if shared else window * key)
    if memory_limit and fixed + one > limit:
        raise Refused(
            f"{memory_limit:g} GiB is less than the {(fixed + one) / GIB:.2f} GiB that one "
            f"pair of {window:,} tokens can take; raise it, or take a smaller window",
            field="memory_limit",
        )
    room = max(limit - fixed, one)
    narrow = max(hidden, inner, middle) <= NARROW_LAYER
    on_cpu = BATCH_TOKENS_NARROW if narrow else BATCH_TOKENS_CPU
    wanted = batch_tokens or (BATCH_TOKENS_GPU if gpu else on_cpu)
    if shared:
        tokens = min(wanted, int(room / each))
        return MemoryPlan(limit, tokens, None, reach, rows, max(int(room - tokens * each) // 2, 0))
    # Half for the targets and half for the copies of their prefix, what one leaves to the other.
    tokens = max(min(wanted, int(room / 2 / each)), 1)
    keys = max(int((room - tokens * each) / key), window)
    return MemoryPlan(limit, tokens, keys, reach, rows, spare=0)


IN_FLIGHT_GPU = 4
"""Demonstrations that share batches on a GPU, where those of one alone would not fill it."""


class TransformersEngine:
    """Shares each prefix's keys and values among length-sorted batches of targets.

    Logits are made at answer positions only, a chunk at a time. Known families run layer by layer
    (`layers`), the others by a cache that is expanded for every batch (`decoder`). How much is
    done at a time follows from a memory plan (`plan_memory`).
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

        With a window, attention that slides only beyond it counts as plain. `why_not_layers` is a
        reason not to run known families layer by layer; without layers `in_flight` is 1. The others
        are those of `ModelOptions`.

        Raises:
            Refused: not even one pair fits the memory limit.
        """
        # Once it has freed a block this large, glibc keeps freed memory for the next pass, where
        # fresh pages would cost a tenth of the time (mallopt(3), M_MMAP_THRESHOLD).
        torch.empty(31 << 20, dtype=torch.uint8)
        self.decoder = Decoder(model)
        self.why_not_layers = why_not_layers or why_not_layered(self.decoder, window)
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
        # In a dense block every demonstration has the same targets: their batches are kept.
        self._targets: Targets | None = None
        self._kept: dict[bytes, tuple[Batch, Any]] = {}
        self._room = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide batches, and why layers do not run one by one if they do not."""
        found: dict[str, Any] = {"engine": self.name, "path": self.path.name}
        found |= {"batch_tokens": self.plan.tokens, "in_flight": self.in_flight}
        found |= {} if self.plan.keys is None else {"batch_keys": self.plan.keys}
        return found | ({"why_not_layers": self.why_not_layers} if self.why_not_layers else {})

    @torch.inference_mode()
    def score(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        """Score jobs, each prefix once."""
        size = self.in_flight
        starts = range(0, len(jobs), size)
        return [one for at in starts for one in self._group(records, jobs[at : at + size])]

    def _group(self, records: EncodedRecords, jobs: Sequence[Job]) -> list[TokenScores]:
        targets = Targets(records, [job.rows for job in jobs])
        result = np.empty(int(records.answer_lengths[targets.rows].sum()), dtype=np.float32)
        if self._targets is None or not targets.same(self._targets):
            self._targets, self._kept, self._room = targets, {}, self.plan.spare
        prefixes = [self.prefilled(job.prefix) for job in jobs]
        reach = max(self.plan.reach, *(len(job.prefix) for job in jobs))
        halved = sum(
            self._score_batch(result, targets, chosen, prefixes)
            for chosen in targets.places(self.plan.tokens, self.plan.keys, reach)
        )
        lengths = [records.answer_lengths[job.rows] for job in jobs]
        pieces = np.split(result, np.cumsum([own.sum() for own in lengths])[:-1])
        # A batch of several jobs is counted at the first of them.
        counts = [halved, *[0] * (len(jobs) - 1)]
        return [TokenScores(*each) for each in zip(pieces, lengths, counts, strict=True)]

    def _score_batch(
        self, result: np.ndarray, targets: Targets, chosen: np.ndarray, prefixes: list[Any]
    ) -> int:
        """Write the scores of some targets into the result; how often it had to be halved."""
        try:
            batch, ready = self._prepared(targets, chosen)
            result[batch.places] = self.path.logprobs(ready, prefixes).cpu().numpy()
            return 0
        except (RuntimeError, MemoryError) as error:
            if not is_memory_error(error):
                raise
            if len(chosen) < 2:
                raise _too_large() from error
        # Outside the handler: its error holds the frames, and with them the tensors, of the pass.
        self._kept, self._room = {}, 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = np.split(chosen, [len(chosen) // 2])
        return 1 + sum(self._score_batch(result, targets, part, prefixes) for part in parts)

    def _prepared(self, targets: Targets, chosen: np.ndarray) -> tuple[Batch, Any]:
        """Some targets as a batch and as the path reads it, kept while there is room."""
        key = chosen.tobytes()
        if key not in self._kept:
            batch = targets.batch(chosen)
            made = (batch, self.path.prepare(batch))
            size = batch.nbytes + made[1].nbytes
            if size > self._room:
                return made
            self._room -= size
            self._kept[key] = made
        return self._kept[key]

    def prefilled(self, prefix: np.ndarray) -> Any:
        """Keys and values of a prefix, or None for an empty one; under `torch.inference_mode`.

        Raises:
            DeliftError: there is no memory for them.
        """
        ids = torch.from_numpy(prefix.astype(np.int64)).to(self.decoder.device)
        try:
            return self.path.prefill(ids) if len(prefix) else None
        except (RuntimeError, MemoryError) as error:
            if is_memory_error(error):
                raise _too_large() from error
            raise


def _too_large() -> DeliftError:
    return DeliftError(
        "a single pair does not fit in memory; use a smaller window, dtype bfloat16 or a "
        "larger device"
    )
