"""Padded batches of targets, made without a Python loop over pairs or tokens."""

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
        lengths: Input tokens of each, without padding, int64 [rows].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    places: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray

    def moved(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        move = (self.ids.to(device), self.positions.to(device), self.answers.to(device))
        return Batch(*move, self.places, self.rows, self.lengths)


def make_batches(records: EncodedRecords, rows: np.ndarray, batch_tokens: int) -> list[Batch]:
    """Sort targets by length and pack them under a token budget.

    A function of its arguments alone.

    Args:
        records: The encoded records.
        rows: Rows of the targets, in the order of the result.
        batch_tokens: Most tokens in a batch, padding included; a longer target goes alone.
    """
    lengths = np.diff(records.target_starts)[rows] - 1
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(records.answer_lengths[rows])
    return [
        _batch(records, rows[chosen], ends[chosen])
        for chosen in _groups(order, lengths, batch_tokens)
    ]


def halves(records: EncodedRecords, batch: Batch) -> list[Batch]:
    """The two halves of a batch of two or more rows."""
    middle, ends = len(batch.rows) // 2, np.cumsum(records.answer_lengths[batch.rows])
    done = int(ends[middle - 1])
    last = batch.places[ends - 1] + 1
    assert done > 0
    return [
        _batch(records, batch.rows[:middle], last[:middle]),
        _batch(records, batch.rows[middle:], last[middle:]),
    ]


def _groups(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    groups, stop = [], len(order)
    while stop > 0:
        # From the longest down: the longest of a group sets its padded length.
        longest = int(lengths[order[stop - 1]])
        start = max(stop - max(batch_tokens // max(longest, 1), 1), 0)
        groups.append(order[start:stop])
        stop = start
    return groups


def _batch(records: EncodedRecords, rows: np.ndarray, ends: np.ndarray) -> Batch:
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
        lengths,
    )
