"""Batches of sequences of similar length, and the batches of targets that engines score."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from delift_pipeline.prompts.encode import EncodedRecords


def length_batches(lengths: np.ndarray, room: Callable[[int], int]) -> Iterator[np.ndarray]:
    """Yield batches of sequences of similar length, longest first, as places in `lengths` [n].

    `room` says how many sequences of a length fit into a batch; a batch has at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(room(max(int(lengths[order[0]]), 1)), 1)
        yield order[:size]
        order = order[size:]


def pad_sequences(
    sequences: Sequence[np.ndarray], padding: int = 0, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences to one width: token ids and a mask (0 on padding), int64 [rows, longest]."""
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

    The input leaves out the last answer token, because nothing is predicted after it.

    Attributes:
        ids: Input ids, int64 [rows, length].
        positions: Where in the flattened [rows * length] input each answer token is predicted.
        answers: The true answer tokens, int64 [answer tokens].
        places: Where each answer token's result goes in the flat result of all jobs, int64.
        owners: Number of the job in flight that each target belongs to, ascending, [rows].
        lengths: Input tokens of each target, without padding, int64 [rows].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    places: np.ndarray
    owners: np.ndarray
    lengths: np.ndarray

    @property
    def rows(self) -> int:
        """The number of targets."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values())


class Targets:
    """The targets of the jobs in flight, job after job, in the order of their results."""

    def __init__(self, records: EncodedRecords, jobs: Sequence[np.ndarray]) -> None:
        """Concatenate the jobs' targets; `jobs` has each job's rows in the encoded records."""
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
        """Yield the places of the targets of each batch.

        A batch has at most `tokens` tokens, padding included, and at most `keys` tokens if the
        longest prefix is counted with every target. It has at least one target.
        """

        def room(longest: int) -> int:
            most = tokens // longest
            return most if keys is None else min(most, keys // (longest + longest_prefix))

        return length_batches(np.diff(self.records.target_starts)[self.rows] - 1, room)

    def make_batch(self, chosen: np.ndarray) -> Batch:
        """Make the batch of the targets at the places `chosen`, without a loop over tokens."""
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
        # For each answer token: its row in the batch, and its number in the answer.
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
    """Targets end to end without padding, and the indices that lay them out in rows.

    Everything but attention works on the packed tokens. Attention needs rows: `spread` copies
    packed tokens into the cells of rows, and `gather` takes them back.

    Attributes:
        ids: Input ids, int64 [tokens].
        steps: Each token's position in its target, int64 [tokens].
        answers: The true answer tokens, int64 [answers].
        query_tokens: The tokens that predict an answer token, int64 [answers].
        rows: The number of targets.
        spread: The token in every cell of [rows * longest]; padding repeats token 0.
        gather: The cell of every token, [tokens].
        answer_spread: Like `spread` for the query tokens alone, [rows * most answers].
        answer_gather: Like `gather` for the query tokens alone, [answers].
        mask: 0 or -inf, [rows, 1, most answers, longest]: the tokens that each query token sees.
        owners: The job of each segment, by its number among the jobs in flight.
        segments: Where the tokens of each owner begin, and where the last ones end.
        answer_segments: The same for the answers.
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
    """Remove the padding of a batch and send the result to the device."""
    rows, width = batch.ids.shape
    cells = np.flatnonzero(np.arange(width) < batch.lengths[:, None])
    token_of = np.zeros(rows * width, dtype=np.int64)
    token_of[cells] = np.arange(len(cells))
    positions = batch.positions.numpy()
    row_of, column = np.divmod(positions, width)
    # The query tokens in rows of their own: cells of [rows, most answers].
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
