"""Padded batches of targets, made without a Python loop over pairs or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delift_pipeline.prompts.encoded import EncodedRecords


@dataclass(frozen=True)
class Batch:
    """Targets of similar length, padded on the right.

    The last answer token is left out of the input: nothing is predicted after it.

    Attributes:
        ids: Input ids, int64 [rows, length].
        positions: Where, in the flattened [rows * length] input, each answer token is predicted.
        answers: The true answer tokens, int64 [answer tokens].
        places: Where each answer token's result belongs in the job's flat result, int64.
        rows: The targets' rows in the encoded records.
        owners: Which of the jobs in flight each target belongs to, ascending.
        lengths: Input tokens of each, without padding, int64 [rows].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    places: np.ndarray
    rows: np.ndarray
    owners: np.ndarray
    lengths: np.ndarray

    def moved(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        move = (self.ids.to(device), self.positions.to(device), self.answers.to(device))
        return Batch(*move, self.places, self.rows, self.owners, self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        held = (self.ids, self.positions, self.answers, self.places, self.lengths)
        return sum(array.nbytes for array in held)


@dataclass(frozen=True)
class Targets:
    """Targets of the jobs in flight, in the order of their results.

    Attributes:
        records: The encoded records.
        rows: Their rows in it.
        owners: The job of each, int64.
        ends: Where each one's answer ends in the flat result.
    """

    records: EncodedRecords
    rows: np.ndarray
    owners: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, records: EncodedRecords, jobs: Sequence[np.ndarray]) -> "Targets":
        """The targets of several jobs, job after job."""
        rows = np.concatenate(jobs)
        owners = np.repeat(np.arange(len(jobs)), [len(job) for job in jobs])
        return cls(records, rows, owners, np.cumsum(records.answer_lengths[rows]))

    def same(self, other: "Targets | None") -> bool:
        """Whether the others are the same records for the same jobs."""
        return (
            other is not None
            and other.records is self.records
            and np.array_equal(other.rows, self.rows)
            and np.array_equal(other.owners, self.owners)
        )

    def batch(self, chosen: np.ndarray) -> Batch:
        """The batch of the targets at the places `chosen`."""
        chosen = chosen[np.argsort(self.owners[chosen], kind="stable")]
        return _batch(self.records, self.rows[chosen], self.ends[chosen], self.owners[chosen])


def batch_places(
    targets: Targets, tokens: int, *, keys: int | None = None, reach: int = 0
) -> list[np.ndarray]:
    """Which targets go into one batch: of similar length, under a token budget.

    A function of its arguments alone.

    Args:
        targets: The targets.
        tokens: Most tokens in a batch, padding included; a longer target goes alone.
        keys: Most tokens with `reach` more for each target; None for no bound.
        reach: Tokens of the longest prefix.
    """
    lengths = np.diff(targets.records.target_starts)[targets.rows] - 1
    order, stop, groups = np.argsort(lengths, kind="stable"), len(targets.rows), []
    while stop > 0:
        # From the longest down: the longest of a group sets its padded length.
        longest = max(int(lengths[order[stop - 1]]), 1)
        most = tokens // longest
        if keys is not None:
            most = min(most, keys // (longest + reach))
        start = max(stop - max(most, 1), 0)
        groups.append(order[start:stop])
        stop = start
    return groups


def halves(records: EncodedRecords, batch: Batch) -> list[Batch]:
    """The two halves of a batch of two or more rows."""
    middle, ends = len(batch.rows) // 2, np.cumsum(records.answer_lengths[batch.rows])
    last = batch.places[ends - 1] + 1
    return [
        _batch(records, batch.rows[half], last[half], batch.owners[half])
        for half in (slice(middle), slice(middle, None))
    ]


def _batch(
    records: EncodedRecords, rows: np.ndarray, ends: np.ndarray, owners: np.ndarray
) -> Batch:
    starts = records.target_starts[rows]
    lengths = (records.target_starts[rows + 1] - starts - 1).astype(np.int64)
    width = int(lengths.max())
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    ids = np.where(inside, records.target_tokens[np.where(inside, starts[:, None] + columns, 0)], 0)
    prompts, answers = records.prompt_lengths[rows], records.answer_lengths[rows].astype(np.int64)
    line = np.repeat(np.arange(len(rows)), answers)
    step = np.arange(answers.sum()) - np.repeat(np.cumsum(answers) - answers, answers)
    positions = line * width + (prompts - 1)[line] + step
    tokens = records.target_tokens[(starts + prompts)[line] + step]
    places = (ends - answers)[line] + step
    return Batch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(positions.astype(np.int64)),
        torch.from_numpy(tokens.astype(np.int64)),
        places,
        rows,
        owners,
        lengths,
    )
