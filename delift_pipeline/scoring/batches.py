"""Batches of sequences of near lengths, padded; and those of scoring, of targets after prefixes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delift_pipeline.prompts.encode import EncodedRecords


def length_batches(lengths: np.ndarray, room: Callable[[int], int]) -> Iterator[np.ndarray]:
    """Places of sequences of near lengths (tokens, int [n]), longest first.

    A function of its arguments alone. `room` says how many sequences of a length fit into a batch;
    at least one is taken.
    """
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(room(max(int(lengths[order[0]]), 1)), 1)
        yield order[:size]
        order = order[size:]


def pad_sequences(
    sequences: Sequence[np.ndarray], padding: int = 0, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded to one width, and 1 on tokens and 0 on padding; int64 [rows, longest]."""
    lengths = np.asarray([len(sequence) for sequence in sequences])
    columns = np.arange(lengths.max())
    columns = columns[::-1] if left else columns
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, padding, dtype=np.int64)
    ids[mask] = np.concatenate(sequences)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


@dataclass(frozen=True)
class Batch:
    """Targets of similar length, padded on the right.

    The last answer token is left out of the input: nothing is predicted after it.

    Attributes:
        ids: Input ids, int64 [rows, length].
        positions: Where, in the flattened [rows * length] input, each answer token is predicted.
        answers: The true answer tokens, int64 [answer tokens].
        places: Where each answer token's result belongs in the job's flat result, int64.
        owners: Which of the jobs in flight each target belongs to, ascending.
        lengths: Input tokens of each, without padding, int64 [rows].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    places: np.ndarray
    owners: np.ndarray
    lengths: np.ndarray

    @property
    def rows(self) -> int:
        """How many targets there are."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in vars(self).values())


class Targets:
    """Targets of the jobs in flight, job after job, in the order of their results."""

    def __init__(self, records: EncodedRecords, jobs: Sequence[np.ndarray]) -> None:
        """Take each job's rows in the encoded records."""
        self.records, self.rows = records, np.concatenate(jobs)
        self.owners = np.repeat(np.arange(len(jobs)), [len(job) for job in jobs])
        self.ends = np.cumsum(records.answer_lengths[self.rows])

    def equals(self, other: "Targets") -> bool:
        """Whether these are the same targets of the same jobs in flight."""
        pairs = ((self.rows, other.rows), (self.owners, other.owners))
        return self.records is other.records and all(np.array_equal(*pair) for pair in pairs)

    def batch_places(
        self, tokens: int, keys: int | None, longest_prefix: int
    ) -> Iterator[np.ndarray]:
        """Which targets go into one batch: at most so many tokens, padding included, or one target.

        A batch has at most `keys` tokens, counting the longest prefix once for each target.
        """

        def room(longest: int) -> int:
            most = tokens // longest
            return most if keys is None else min(most, keys // (longest + longest_prefix))

        return length_batches(np.diff(self.records.target_starts)[self.rows] - 1, room)

    def make_batch(self, chosen: np.ndarray) -> Batch:
        """The batch of the targets at the places `chosen`, made without a loop over tokens."""
        chosen = chosen[np.argsort(self.owners[chosen], kind="stable")]
        records, rows = self.records, self.rows[chosen]
        starts, prompts = records.target_starts[rows], records.prompt_lengths[rows]
        lengths = (records.target_starts[rows + 1] - starts - 1).astype(np.int64)
        answers = records.answer_lengths[rows].astype(np.int64)
        width = int(lengths.max())
        columns = np.arange(width)
        inside = columns < lengths[:, None]
        cells = np.where(inside, starts[:, None] + columns, 0)
        ids = np.where(inside, records.target_tokens[cells], 0)
        row_of = np.repeat(np.arange(len(rows)), answers)
        step = np.arange(answers.sum()) - np.repeat(np.cumsum(answers) - answers, answers)
        positions = row_of * width + (prompts - 1)[row_of] + step
        tokens = records.target_tokens[(starts + prompts)[row_of] + step]
        return Batch(
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(positions.astype(np.int64)),
            torch.from_numpy(tokens.astype(np.int64)),
            (self.ends[chosen] - answers)[row_of] + step,
            self.owners[chosen],
            lengths,
        )


@dataclass(frozen=True)
class PackedTargets:
    """Targets end to end without padding, and how to lay them out in rows.

    Attributes:
        ids: Input ids, int64 [tokens].
        steps: Each token's place in its target, int64 [tokens].
        answers: The true answer tokens, int64 [answers].
        query_tokens: Tokens that predict an answer token, int64 [answers].
        rows: Targets.
        spread: Token of every cell of [rows * longest], padding repeats token 0.
        gather: Cell of every token [tokens].
        answer_spread: Query token of every cell of [rows * most answers]; padding repeats token 0.
        answer_gather: Cell of every answer in it [answers].
        mask: 0 or -inf, [rows, 1, most answers, longest]: what each answer's cell sees.
        owners: Prefix of each segment, its place among the prefixes of the batch's jobs.
        segments: Where the tokens of each owner begin, and the end.
        answer_segments: The same of answers.
    """

    ids: torch.Tensor
    steps: torch.Tensor
    answers: torch.Tensor
    query_tokens: torch.Tensor
    rows: int
    spread: torch.Tensor
    gather: torch.Tensor
    answer_spread: torch.Tensor
    answer_gather: torch.Tensor
    mask: torch.Tensor
    owners: list[int]
    segments: list[int]
    answer_segments: list[int]


def pack(batch: Batch, device: torch.device, dtype: torch.dtype) -> PackedTargets:
    """Take the padding out of a batch."""
    rows, width = batch.ids.shape
    cells = np.flatnonzero(np.arange(width) < batch.lengths[:, None])
    token_of = np.zeros(rows * width, dtype=np.int64)
    token_of[cells] = np.arange(len(cells))
    positions = batch.positions.numpy()
    row_of, column = np.divmod(positions, width)
    counts = np.bincount(row_of, minlength=rows)
    most = int(counts.max())
    back = row_of * most + np.arange(len(row_of)) - (np.cumsum(counts) - counts)[row_of]
    answer_spread, seen = np.zeros((2, rows * most), dtype=np.int64)
    answer_spread[back], seen[back] = np.arange(len(row_of)), column
    unseen = torch.from_numpy(np.arange(width) > seen[:, None]).view(rows, 1, most, width)
    owners, first = np.unique(batch.owners, return_index=True)

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    def starts(sizes: np.ndarray) -> list[int]:
        return [*(np.cumsum(sizes) - sizes)[first].tolist(), int(sizes.sum())]

    return PackedTargets(
        ids=batch.ids.reshape(-1)[torch.from_numpy(cells)].to(device),
        steps=put(cells % width),
        answers=batch.answers.to(device),
        query_tokens=put(token_of[positions]),
        rows=rows,
        spread=put(token_of),
        gather=put(cells),
        answer_spread=put(answer_spread),
        answer_gather=put(back),
        mask=torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -torch.inf).to(device),
        owners=owners.tolist(),
        segments=starts(batch.lengths),
        answer_segments=starts(counts),
    )
